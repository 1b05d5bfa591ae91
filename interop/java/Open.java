import com.google.crypto.tink.subtle.X25519;
import com.nimbusds.jose.*;
import com.nimbusds.jose.crypto.*;
import com.nimbusds.jose.jwk.*;
import com.nimbusds.jose.util.JSONObjectUtils;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Collectors;

/**
 * Opens nested JWTs with Nimbus jose+jwt, for package interop. See its
 * documentation for the protocol: one JSON object a line on stdin, one answer a
 * line on stdout.
 */
public final class Open {
  private static final class Refused extends Exception {
    Refused(String text) {
      super(text);
    }
  }

  public static void main(String[] args) throws Exception {
    PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    write(out, Map.of(
        "library", "nimbus-jose-jwt " + version(JWEObject.class),
        "platform", "Java " + Runtime.version().feature() + ", Tink " + version(X25519.class)));
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      Map<String, Object> request = JSONObjectUtils.parse(line);
      Map<String, Object> answer = new LinkedHashMap<>();
      try {
        answer.putAll(open(request));
        answer.put("ok", true);
      } catch (Exception | LinkageError e) {
        answer.put("ok", false);
        answer.put("error", e.getClass().getSimpleName() + ": " + e.getMessage());
      }
      answer.put("id", request.get("id"));
      write(out, answer);
    }
  }

  /** The version in the name of the jar that a class comes from. */
  private static String version(Class<?> of) {
    String jar = of.getProtectionDomain().getCodeSource().getLocation().getPath();
    return jar.replaceAll(".*-([0-9][^-]*)\\.jar$", "$1");
  }

  private static void write(PrintStream out, Map<String, Object> answer) {
    out.println(JSONObjectUtils.toJSONString(answer));
    out.flush();
  }

  private static Map<String, Object> open(Map<String, Object> request) throws Exception {
    Map<String, Object> privateJWK = JSONObjectUtils.getJSONObject(request, "private_jwk");
    JWK key = privateJWK == null ? null : JWK.parse(privateJWK);
    String secret = JSONObjectUtils.getString(request, "client_secret");

    JWEObject jwe = JWEObject.parse(JSONObjectUtils.getString(request, "token"));
    JWEHeader outer = jwe.getHeader();
    allow("alg", outer.getAlgorithm(), request, "key_algorithms");
    allow("enc", outer.getEncryptionMethod(), request, "content_encryptions");
    String kid = key == null ? null : key.getKeyID();
    if (!Objects.equals(outer.getKeyID(), kid)) {
      throw new Refused("token is encrypted to key " + outer.getKeyID() + ", not " + kid);
    }
    jwe.decrypt(key == null ? decrypter(secret, outer) : decrypter(key));
    if (!"JWT".equals(outer.getContentType())) {
      throw new Refused("cty is " + outer.getContentType() + ", not JWT");
    }

    JWSObject jws = JWSObject.parse(jwe.getPayload().toString());
    JWSHeader inner = jws.getHeader();
    allow("alg", inner.getAlgorithm(), request, "signature_algorithms");
    boolean hmac = secret != null && JWSAlgorithm.Family.HMAC_SHA.contains(inner.getAlgorithm());
    if (!jws.verify(hmac ? new MACVerifier(secret) : verifier(inner, request))) {
      throw new Refused("JWSObject.verify gave false");
    }
    Map<String, Object> opened = new LinkedHashMap<>();
    opened.put("claims", jws.getPayload().toString());
    opened.put("jwe_header", outer.toJSONObject());
    opened.put("jws_header", inner.toJSONObject());
    return opened;
  }

  private static void allow(String member, Algorithm alg, Map<String, Object> request, String list) throws Exception {
    if (!JSONObjectUtils.getStringList(request, list).contains(alg.getName())) {
      throw new Refused(member + " " + alg + " is not allowed");
    }
  }

  private static JWEDecrypter decrypter(JWK key) throws Exception {
    if (key instanceof RSAKey) {
      return new RSADecrypter((RSAKey) key);
    }
    if (key instanceof ECKey) {
      return new ECDHDecrypter((ECKey) key);
    }
    return new X25519Decrypter((OctetKeyPair) key);
  }

  private static JWEDecrypter decrypter(String secret, JWEHeader header) throws Exception {
    boolean direct = header.getAlgorithm().equals(JWEAlgorithm.DIR);
    byte[] key = secretKey(secret, direct
        ? header.getEncryptionMethod().cekBitLength() / 8
        : Integer.parseInt(header.getAlgorithm().getName().substring(1, 4)) / 8);
    return direct ? new DirectDecrypter(key) : new AESDecrypter(key);
  }

  /**
   * The key that a client derives from its secret (OpenID Connect Core 1.0
   * section 10.2): the left-most bits of a SHA-2 hash.
   */
  private static byte[] secretKey(String secret, int size) throws Exception {
    String hash = size <= 32 ? "SHA-256" : size <= 48 ? "SHA-384" : "SHA-512";
    byte[] digest = MessageDigest.getInstance(hash).digest(secret.getBytes(StandardCharsets.UTF_8));
    return Arrays.copyOf(digest, size);
  }

  private static JWSVerifier verifier(JWSHeader header, Map<String, Object> request) throws Exception {
    List<JWK> found = JWKSet.parse(JSONObjectUtils.getJSONObject(request, "signers_jwks")).getKeys().stream()
        .filter(k -> Objects.equals(k.getKeyID(), header.getKeyID()) && header.getAlgorithm().equals(k.getAlgorithm()))
        .collect(Collectors.toList());
    if (found.size() != 1) {
      throw new Refused(found.size() + " signers have kid " + header.getKeyID() + " and alg " + header.getAlgorithm());
    }
    JWK key = found.get(0);
    if (key instanceof RSAKey) {
      return new RSASSAVerifier((RSAKey) key);
    }
    if (key instanceof ECKey) {
      return new ECDSAVerifier((ECKey) key);
    }
    return new Ed25519Verifier((OctetKeyPair) key);
  }
}
