// Package nullfs is the floor that benchmarks of the mount stand on: a file system in memory that does nothing but answer the kernel, so
// that what a real room costs beyond FUSE itself can be told. It is also a complete data room for tests of the mount.
//
// It has files, directories, and the operations that benchmarks and tests use; no links, no attributes beyond the basic ones,
// no permissions of its own, no limits.
package nullfs
