// Package dcpb is the wire contract between nodes, and between dcctl and its node: generated from the .proto files beside it by `make gen`.
// Fields are only ever added. It decides nothing; srv/rpc converts errors, principals and request ids.
package dcpb
