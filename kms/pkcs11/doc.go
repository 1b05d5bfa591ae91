// Package pkcs11 keeps signing and wrapping keys in a PKCS#11 token: a hardware
// security module, or SoftHSM. It implements the contract of package kms on one
// token of one module.
//
// A PKCS#11 module is a C library loaded into the process, and it is not kind
// to its callers. A session that two threads use at once, or a C_Finalize
// under a running signature, crashes the process; a handle may go stale at any
// moment because somebody else touched the token; a PIN tried too often locks
// it for good. This package exists to hold those rules in one place:
//
//   - A signature in flight, or a data key being wrapped, has a session of its
//     own, from a bounded pool. One more session does nothing but keep the
//     login.
//   - C_Initialize is called once for a module and process, however many
//     tokens are used of it ([Modules]). C_Finalize and C_Logout are called
//     only while no other call is inside the module; if one does not come out
//     within two seconds, they are not called at all.
//   - An error costs its session. Where the table in errors.go says that a
//     session or a handle went stale, the session is replaced, the login made
//     sure of, the key found again and compared with what it was (by its public
//     half, or by what the token shows of a secret key), and the call made once
//     more. Where the token or the module is gone, callers get
//     [kms.ErrUnavailable] at once while the module is initialized again, each
//     Config.RetryAfter, whether or not anybody calls.
//   - A call that hangs costs its caller the deadline and the pool one session.
//     When no session is left, or something has to be done alone and cannot,
//     the token is down as well, and nothing more is sent into it until the
//     calls come out.
//   - A key that is created here stays on the token and signs, no more, and the
//     token's own account of that is read before the key is taken.
//   - A PIN that was refused is not sent again until the content of its file
//     changes, and no PIN is sent to a token that reports failed attempts,
//     unless [Config].InsistOnLogin says so. With [Config].RefusalFile that holds
//     over restarts, and for all processes with that file.
//   - A PIN that may have been changed on the token is sent only after the module
//     was initialized again: some refuse what they do not know yet.
//   - A module is trusted with nothing that can be checked here: type, curve
//     and size of keys, the length of what goes in and comes out, and by a
//     probe signature at open that the private key belongs to the public one.
//
// Messages are hashed in Go and signed with the raw mechanisms, which are the
// ones that all modules have. Data keys are wrapped by the token with AES-GCM,
// else with AES key wrap, else under a key that comes from an RSA signature
// ([Backend.OpenWrapper] says how, and why it is authentic each time). Modules
// have no one error for "this was changed", so a wrapped key is only called bad
// while another, made when the key was opened, still opens.
//
// What an operator has to edit (an empty module path, no token) fails [New].
// What may heal by itself does not: a missing module file, token or PIN file,
// a refused PIN, a module that fails. The backend then stays up, answers
// kms.ErrUnavailable with the reason, and tries again.
//
// A module may run in a process of its own ([Config].Worker, [RunWorker]), which
// it can then crash or hang without harm to this one: all that is behind the
// vault interface is plain data and goes over a socket. A worker that ends, or
// gives no sign of life, or says that a call is stuck in its module, is replaced
// at once, and calls that were in flight are made again where that is safe. The
// PIN stays here, with the memory of what was refused: a worker asks for it at
// each login, so the rule above holds over any number of workers.
//
// Left to others: verifying each signature before it leaves the process (the
// signer does it and calls Distrust).
package pkcs11
