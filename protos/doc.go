// Package protos holds the wire contracts: the .proto files beside this one
// and, in a package each, the Go code that generate.sh makes of them. They are
// the union of two generations of upstream's contracts; testdata/facts.tsv
// lists every fact with the generation it comes from, and the tests keep the
// three in step. Clients, daemons and guest agents import the generated
// packages; this package exports nothing.
package protos
