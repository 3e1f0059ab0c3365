// Package file is the vocabulary of /dc/data: inode numbers, attributes, extents and block names, as the metadata service, its
// client, the block stores and the mount's room speak of them. Like package dc it stands on the standard library (and on dc) only.
//
// Concepts defined here: [Ino] (12-bit slot, 52-bit sequence), [Attr], [Content] (inline run below extents), [Extent],
// [BlockID], [Location].
package file
