// Package jobspec reads job specs: a script with `#dc key=value` directives, or YAML, into one [Spec]; and writes a Spec back in its
// canonical form.
//
// An error names the line (and for YAML the column), what is wrong, and for a misspelt key the one that was probably meant. The package knows nothing of nodes and
// does not look at the world: what it accepts depends on the text only.
package jobspec
