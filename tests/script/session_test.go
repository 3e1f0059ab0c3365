package script

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sessionTimeout bounds one session; eventually's patience is well below it.
const sessionTimeout = 2 * time.Minute

// A step is a command of a session and what it should print.
type step struct {
	line    int // in the session's file
	command string
	want    []string
	status  int
}

// parseSession reads a session in the form that the package describes.
func parseSession(text string) ([]step, error) {
	var steps []step
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		last := len(steps) - 1
		switch {
		case strings.HasPrefix(line, "$ "):
			steps = append(steps, step{line: i + 1, command: line[2:]})
		case strings.HasPrefix(line, "# ") || line == "" && last < 0:
		case last < 0:
			return nil, fmt.Errorf("line %d: output before the first command", i+1)
		case strings.HasPrefix(line, "> "):
			steps[last].command += "\n" + line[2:]
		case len(line) > 2 && line[0] == '[' && line[len(line)-1] == ']':
			status, err := strconv.Atoi(line[1 : len(line)-1])
			if err != nil {
				steps[last].want = append(steps[last].want, line)
				continue
			}
			steps[last].status = status
		default:
			steps[last].want = append(steps[last].want, line)
		}
	}
	for i := range steps { // empty lines between commands are for the eye
		for w := &steps[i].want; len(*w) > 0 && (*w)[len(*w)-1] == ""; {
			*w = (*w)[:len(*w)-1]
		}
	}
	return steps, nil
}

const prelude = `exec 2>&1
set +m
eventually() {
	local end=$((SECONDS + ${PATIENCE:-20})) out
	until out=$("$@" 2>&1); do
		if [ $SECONDS -ge $end ]; then printf '%s\n' "$out"; echo "still not after ${PATIENCE:-20} s: $*"; return 1; fi
		sleep 0.1
	done
}
xattr() { getfattr --absolute-names --only-values -n "$@"; }
`

// script is the bash program of a session: each step followed by a line that tells its number and status.
func script(steps []step, mark string) string {
	var b strings.Builder
	b.WriteString(prelude)
	for i, s := range steps {
		fmt.Fprintf(&b, "echo '%s begin %d'\n%s\n{ __status=$?; printf '\\n%s end %d %%d\\n' $__status; } 2>/dev/null\n", mark, i, s.command, mark, i)
	}
	return b.String()
}

// play runs a session and reports where it differs from what is written. When it takes too long it is killed, after release was called.
func play(dir string, env []string, text string, release func()) error {
	steps, err := parseSession(text)
	if err != nil {
		return err
	}
	mark := fmt.Sprintf("@@%d@@", time.Now().UnixNano())
	program := filepath.Join(dir, ".session.sh")
	if err := os.WriteFile(program, []byte(script(steps, mark)), 0o600); err != nil {
		return err
	}
	// A file, not a pipe: what a session leaves in the background must not hold it up.
	out, err := os.Create(filepath.Join(dir, ".session.out"))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command("bash", "--norc", program)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(sessionTimeout, func() {
		release()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	})
	_ = cmd.Wait()
	hung := !timer.Stop()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left in the background
	printed, err := os.ReadFile(out.Name())
	if err != nil {
		return err
	}
	return compare(steps, string(printed), mark, hung)
}

// compare finds the steps that printed something else.
func compare(steps []step, printed, mark string, hung bool) error {
	var b bytes.Buffer
	for i, s := range steps {
		_, rest, begun := strings.Cut(printed, fmt.Sprintf("%s begin %d\n", mark, i))
		if !begun {
			fmt.Fprintf(&b, "line %d: $ %s\n  was not reached\n", s.line, s.command)
			break
		}
		got, rest, ended := strings.Cut(rest, fmt.Sprintf("\n%s end %d ", mark, i))
		if !ended {
			why := "ended the session"
			if hung {
				why = fmt.Sprintf("hangs: not done when the session had taken %v", sessionTimeout)
			}
			fmt.Fprintf(&b, "line %d: $ %s\n  %s\n  got:\n%s\n", s.line, s.command, why, indent(got))
			break
		}
		number, _, _ := strings.Cut(rest, "\n")
		status, _ := strconv.Atoi(number)
		if !matches(s.want, lines(got)) || status != s.status {
			fmt.Fprintf(&b, "line %d: $ %s\n  got (status %d):\n%s\n  want (status %d):\n%s\n", s.line, s.command, status, indent(got), s.status, indent(strings.Join(s.want, "\n")))
		}
	}
	if b.Len() > 0 {
		return fmt.Errorf("\n%s", b.String())
	}
	return nil
}

func lines(text string) []string {
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// matches compares output with expectations: `~ REGEXP`, `...` for any number of lines, or the line itself.
func matches(want, got []string) bool {
	if len(want) == 0 {
		return len(got) == 0
	}
	if want[0] == "..." {
		for skip := 0; skip <= len(got); skip++ {
			if matches(want[1:], got[skip:]) {
				return true
			}
		}
		return false
	}
	if len(got) == 0 {
		return false
	}
	ok := want[0] == got[0]
	if pattern, isPattern := strings.CutPrefix(want[0], "~ "); isPattern {
		re, err := regexp.Compile("^(?:" + pattern + ")$")
		ok = err == nil && re.MatchString(got[0])
	}
	return ok && matches(want[1:], got[1:])
}

func indent(text string) string {
	if strings.TrimSpace(text) == "" {
		return "    (nothing)"
	}
	return "    " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    ")
}
