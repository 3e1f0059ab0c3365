// Package tuple encodes keys so that the order of the bytes is the order of the values: a key is a row-kind byte
// followed by elements. Elements are self-delimiting, so an element is a prefix of the keys below it and a span of
// keys is "everything below these elements" ([PrefixEnd]).
//
// Elements: unsigned numbers (eight bytes, big endian), signed numbers (sign bit flipped), descending numbers
// (complemented) and strings (NUL escaped as 00 FF, terminated by 00 01, as in FoundationDB's tuple layer).
//
// The package has no types and no state. It does not describe values: those are protobuf records of package command.
package tuple
