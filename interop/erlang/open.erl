#!/usr/bin/env escript
%% -*- erlang -*-
%% Opens nested JWTs with erlang-jose, for package interop. See its documentation
%% for the protocol: one JSON object a line on stdin, one answer a line on stdout.

-mode(compile).

main(_) ->
    %% With these, file:read_line and file:write pass bytes on as they are.
    ok = io:setopts(standard_io, [binary, {encoding, latin1}]),
    {ok, _} = application:ensure_all_started(jose),
    jose:json_module(jose_json_jiffy),
    {ok, Version} = application:get_key(jose, vsn),
    write(#{
        library => list_to_binary("erlang-jose " ++ Version),
        platform => list_to_binary("Erlang/OTP " ++ erlang:system_info(otp_release))
    }),
    loop().

loop() ->
    case file:read_line(standard_io) of
        eof ->
            ok;
        {ok, Line} ->
            Request = #{<<"id">> := ID} = jiffy:decode(Line, [return_maps]),
            write(answer(Request, ID)),
            loop()
    end.

answer(Request, ID) ->
    try open(Request) of
        Opened -> Opened#{id => ID, ok => true}
    catch
        throw:Text ->
            #{id => ID, ok => false, error => text("~ts", [Text])};
        %% erlang-jose raises what its functions do not match.
        Class:Reason:Stack ->
            #{id => ID, ok => false, error => text("~p:~p in ~s", [Class, kind(Reason), where(Stack)])}
    end.

kind(Reason) when is_tuple(Reason) -> element(1, Reason);
kind(Reason) -> Reason.

%% where names the innermost function of erlang-jose.
where(Stack) ->
    hd([atom_to_list(M) || {M, _, _, _} <- Stack, lists:prefix("jose", atom_to_list(M))] ++ ["no function of jose"]).

open(Request = #{<<"token">> := Token}) ->
    Outer = header(parts(Token, 5)),
    %% erlang-jose has an allow-list for signatures only.
    allow(<<"alg">>, Outer, <<"key_algorithms">>, Request),
    allow(<<"enc">>, Outer, <<"content_encryptions">>, Request),
    Private = maps:get(<<"private_jwk">>, Request, #{}),
    case {maps:get(<<"kid">>, Outer, none), maps:get(<<"kid">>, Private, none)} of
        {KID, KID} -> ok;
        {Other, KID} -> throw(text("token is encrypted to key ~p, not ~p", [Other, KID]))
    end,
    Plaintext =
        case jose_jwe:block_decrypt(key(Request, Outer), Token) of
            {P, _} when is_binary(P) -> P;
            {error, _} -> throw("jose_jwe:block_decrypt gave error")
        end,
    case Outer of
        #{<<"cty">> := <<"JWT">>} -> ok;
        _ -> throw(text("cty is ~p, not JWT", [maps:get(<<"cty">>, Outer, none)]))
    end,
    Inner = header(parts(Plaintext, 3)),
    Allowed = maps:get(<<"signature_algorithms">>, Request),
    case jose_jws:verify_strict(signer(Request, Inner), Allowed, Plaintext) of
        {true, Payload, _} -> #{claims => Payload, jwe_header => Outer, jws_header => Inner};
        {false, _, _} -> throw("jose_jws:verify_strict gave false")
    end.

parts(Token, N) ->
    Parts = binary:split(Token, <<".">>, [global]),
    length(Parts) =:= N orelse throw(text("not a compact token of ~b parts", [N])),
    Parts.

header([Header | _]) -> jiffy:decode(jose_jwa_base64url:decode(Header), [return_maps]).

allow(Member, Header, List, Request) ->
    Value = maps:get(Member, Header, none),
    lists:member(Value, maps:get(List, Request)) orelse throw(text("~ts ~p is not allowed", [Member, Value])).

key(#{<<"private_jwk">> := Private}, _) ->
    jose_jwk:from_map(Private);
key(#{<<"client_secret">> := Secret}, #{<<"alg">> := Alg, <<"enc">> := Enc}) ->
    jose_jwk:from_oct(secret_key(Secret, size(Alg, Enc))).

%% secret_key is the key that a client derives from its secret (OpenID Connect
%% Core 1.0 section 10.2): the left-most bits of a SHA-2 hash.
secret_key(Secret, Size) ->
    Hash = if Size =< 32 -> sha256; Size =< 48 -> sha384; true -> sha512 end,
    binary:part(crypto:hash(Hash, Secret), 0, Size).

size(<<"dir">>, <<"A128GCM">>) -> 16;
size(<<"dir">>, <<"A192GCM">>) -> 24;
size(<<"dir">>, <<"A256GCM">>) -> 32;
size(<<"dir">>, <<"A128CBC-HS256">>) -> 32;
size(<<"dir">>, <<"A192CBC-HS384">>) -> 48;
size(<<"dir">>, <<"A256CBC-HS512">>) -> 64;
size(<<"A", Bits:3/binary, _/binary>>, _) -> binary_to_integer(Bits) div 8.

signer(#{<<"client_secret">> := Secret}, #{<<"alg">> := <<"HS", _/binary>>}) ->
    jose_jwk:from_oct(Secret);
signer(#{<<"signers_jwks">> := #{<<"keys">> := Keys}}, Header) ->
    Name = fun(Map) -> {maps:get(<<"kid">>, Map, none), maps:get(<<"alg">>, Map, none)} end,
    case [Key || Key <- Keys, Name(Key) =:= Name(Header)] of
        [Key] -> jose_jwk:from_map(Key);
        Found -> throw(text("~b signers have kid and alg ~p", [length(Found), Name(Header)]))
    end.

text(Format, Args) -> unicode:characters_to_binary(io_lib:format(Format, Args)).

write(Answer) -> ok = file:write(standard_io, [jiffy:encode(Answer), $\n]).
