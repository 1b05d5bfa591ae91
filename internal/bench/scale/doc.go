// Scale says what a million registered clients cost, against a thousand.
//
// What the service does for a client it should do when the client is used, and
// not because it is registered. So the same things are measured at several
// numbers of registered clients, on each store, and what counts is the ratio of
// the largest to the smallest: of the time a start takes, and of the time a
// caller waits; and the memory of a client that is in use. Beside it stand
// what a client costs at its first call, what a page of a list costs, what is
// fetched from clients' hosts, and how much a store can write.
//
// The service is the binary that is shipped, run as a process of its own; the
// callers are here. It signs with a key in a file, in development mode: what a
// token costs with an HSM is for the other tool to say, and the quicker all else
// is, the more a slow registry shows.
//
// The sizes take turns in each round, so that a machine that slows down for a
// while slows down all of them; each call goes to the next of the services.
// Printed is the median over the rounds, and of the
// ratio, which is taken within each round.
//
// # The clients
//
// A client is known by its rank, 0 for the one that is used most. Its name is a
// hash of its rank, so that clients who are used much lie anywhere in the store;
// the smaller populations are the beginnings of the larger. Of a hundred,
// about 45 have registered an RSA key of 2048 bits and 35 a P-256 key as a JWK
// Set, 10 a jwks_uri that about ten clients share, 5 one of their own, and 5
// have a secret. The keys come from a pool, which saves making a million of
// them: every client's is parsed and kept for itself all the same. What was
// fetched from a jwks_uri is in the store already, and fresh, except where
// fetches are measured.
//
// Callers choose clients by Zipf's law (s = 1.1, with fixed seeds), at a rate
// that leaves the processors half idle.
//
// A population is written once, as `bulla registry export` does, and read into
// each store, as `bulla registry import` does. The stores lie in temporary
// folders, and are gone when the tool is.
//
// The tool judges nothing: it prints where the goals are met and where not, and
// fails only if something does not work.
package main
