// Package harness runs the built binary the way an operator would: with a
// configuration file, certificates, a SoftHSM token, and client hosts on TLS;
// so that what is tested and measured is what is shipped.
//
// It gives a test a Service, a child process that can be started, stopped,
// killed and started again over the same files, and lets it read all that the
// service says: its answers, log, audit log and metrics. Around it stand a PKI
// of the test's own, a Host that serves JWK Sets as badly as a test wants, and
// ClientKey, the private half that only a relying party has.
//
// Every Service has a loopback address of its own, 127.x.y.z with random parts,
// so that its ports are free and stay its own while it is down. This needs
// Linux, as the PKCS#11 tests do.
//
// Programs that are no tests use it through Standalone.
package harness
