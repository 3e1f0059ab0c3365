// Package client is the only client of the services: it finds the leader of the group a request is for, retries a mutation under
// one request id until it is answered or the caller's time is up, and offers one typed front a service (KV, Lock, Topic, ...)
// which the rooms of fs and the commands of dcctl use.
//
// Concepts defined here: [Call] (one attempt), [Nodes] and [Directory] (what the client must be told).
//
// It decides nothing: who may do what, limits and meaning are the services' part. Lock order: window.mu and Client.mu are
// leaves, never held across a call.
package client
