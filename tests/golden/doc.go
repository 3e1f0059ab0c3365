// Package golden replays logs that earlier versions wrote. Each testdata/KIND.log.zst is what one group's log held when it was recorded, entry by entry as it
// was on disk; testdata/sums has the digest that replaying it gave then. A version that makes something else of an old log would diverge from replicas
// that still run the old one, and from what users were told: the digest of a log never changes. New logs are added beside the old ones
// when commands are added:
//
//	DC_GOLDEN_RECORD=DIR DC_GOLDEN_NAME=v2 go test ./tests/golden -run TestRecord
//
// takes those of a stopped cluster's node whose directory is DIR. The cluster must be a throw-away one: its keys are in the log of meta.
package golden
