package kvfs

import "strings"

const controlName = ".dc"

// escapes are the sequences that names use for what they cannot hold.
var escapes = strings.NewReplacer("%00", "\x00", "%2E", ".", "%25", "%")

// segmentOf gives the key's segment that a file name stands for.
func segmentOf(name string) string {
	if !strings.Contains(name, "%") {
		return name
	}
	return escapes.Replace(name)
}

// nameOf is segmentOf's inverse.
func nameOf(segment string) string {
	switch segment {
	case ".", "..", controlName:
		return "%2E" + segment[1:]
	}
	if !strings.ContainsAny(segment, "%\x00") {
		return segment
	}
	var b strings.Builder
	for i := 0; i < len(segment); i++ {
		switch rest := segment[i:]; {
		case rest[0] == 0:
			b.WriteString("%00")
		case rest[0] == '%' && isEscape(rest):
			b.WriteString("%25")
		default:
			b.WriteByte(rest[0])
		}
	}
	return b.String()
}

func isEscape(s string) bool {
	for _, e := range []string{"%00", "%2E", "%25"} {
		if strings.HasPrefix(s, e) {
			return true
		}
	}
	return false
}

func join(dir, segment string) string {
	if dir == "" {
		return segment
	}
	return dir + "/" + segment
}
