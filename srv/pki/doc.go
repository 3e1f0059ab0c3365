// Package pki is who a node is: the cluster's certificate authority, each node's key and certificate, the TLS settings made of them,
// and join tokens.
//
// Concepts defined here: [Authority] signs; [Identity] is one node's key, certificate and trust; [Token] lets a stranger find and trust a cluster
// once. A node's certificate names it by a URI as SPIFFE has it: spiffe://<cluster>/node/n3. Keys are ed25519, connections TLS 1.3.
//
// It does not know which tokens are spent or which nodes are removed: the meta group does, and srv/node asks at every request.
package pki
