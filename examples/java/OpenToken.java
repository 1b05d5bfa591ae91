import com.nimbusds.jose.JWEAlgorithm;
import com.nimbusds.jose.EncryptionMethod;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.jwk.JWK;
import com.nimbusds.jose.jwk.JWKSet;
import com.nimbusds.jose.jwk.source.ImmutableJWKSet;
import com.nimbusds.jose.proc.JWEDecryptionKeySelector;
import com.nimbusds.jose.proc.JWSVerificationKeySelector;
import com.nimbusds.jose.proc.SecurityContext;
import com.nimbusds.jwt.JWTClaimsSet;
import com.nimbusds.jwt.proc.DefaultJWTClaimsVerifier;
import com.nimbusds.jwt.proc.DefaultJWTProcessor;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;

/**
 * Opens a token as its client does, with Nimbus JOSE + JWT: the token on stdin,
 * its claims on stdout.
 *
 * <p>Decrypts with the client's private key, then verifies the signature inside
 * with the issuer's public keys. Both steps name the algorithms that the client
 * registered and take no others: a header is what an attacker writes.
 *
 * <p>Usage: java -cp nimbus-jose-jwt.jar OpenToken.java PRIVATE.jwk SIGNERS.json ISS CLIENT_ID
 */
public final class OpenToken {
  public static void main(String[] args) throws Exception {
    JWK key = JWK.parse(Files.readString(Path.of(args[0])));
    JWKSet signers = JWKSet.load(new File(args[1]));

    DefaultJWTProcessor<SecurityContext> processor = new DefaultJWTProcessor<>();
    processor.setJWEKeySelector(new JWEDecryptionKeySelector<>(
        JWEAlgorithm.RSA_OAEP_256, EncryptionMethod.A256GCM, new ImmutableJWKSet<>(new JWKSet(key))));
    // A client that runs for long takes JWKSourceBuilder.create(jwksURI) here.
    processor.setJWSKeySelector(new JWSVerificationKeySelector<>(JWSAlgorithm.ES256, new ImmutableJWKSet<>(signers)));
    processor.setJWTClaimsSetVerifier(new DefaultJWTClaimsVerifier<>(
        args[3], new JWTClaimsSet.Builder().issuer(args[2]).build(), Set.of("sub", "iat", "exp")));

    String token = new String(System.in.readAllBytes(), StandardCharsets.US_ASCII).trim();
    System.out.println(processor.process(token, null));
  }
}
