package ansible

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

type recorder struct {
	mu    sync.Mutex
	lines []string
	calls int
	done  chan error
}

func (r *recorder) Lines(lines []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, lines...)
	r.calls++
}

func (r *recorder) Done(err error) { r.done <- err }

func (r *recorder) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		t.Fatal("no final report")
		return nil
	}
}

// runner has a script in ansible-playbook's place: it stands for the many
// things that one may do.
func runner(t *testing.T, script string) (*Runner, *recorder) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	if script != "" {
		text := "#!/bin/sh\nfor last; do :; done\n" + script + "\n"
		if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "bin/ansible-playbook"), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := &recorder{done: make(chan error, 4)}
	run := New([]string{"PATH=" + dir + "/none:" + dir + "/bin:/usr/bin:/bin", "GIVEN=yes"}, r, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		run.Close()
		if left, _ := filepath.Glob(dir + "/garcon-playbook-*"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	return run, r
}

func TestApply(t *testing.T) {
	run, r := runner(t, `echo "$@" | sed 's| [^ ]*$||'; stat -c '%a %F' "$last"; stat -c %a .; cat "$last"; echo; echo $GIVEN; printf 'no end'`)
	if err := run.Apply("the text"); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); err != nil {
		t.Fatal(err)
	}
	want := "--become --connection=local --inventory=127.0.0.1, --extra-vars=ansible_python_interpreter=/usr/bin/python3|" +
		"600 regular file|700|the text|yes|no end"
	if got := strings.Join(r.lines, "|"); got != want {
		t.Errorf("lines\n%s, want\n%s", got, want)
	}
}

func TestFailures(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"a code":             {"echo task failed; exit 2", "exit status 2: the lines it printed"},
		"a code with errors": {"echo why >&2; exit 2", "exit status 2: why"},
		"errors alone":       {"echo 'not so good' >&2", "complained: not so good"},
		"a signal":           {"kill -9 $$", "signal: killed"},
		"many errors":        {"yes error | head -c 100000 >&2", "complained: error\nerror"},
	} {
		t.Run(name, func(t *testing.T) {
			run, r := runner(t, c.script)
			if err := run.Apply("x"); err != nil {
				t.Fatal(err)
			}
			err := r.end(t)
			if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 2*maxDetails {
				t.Errorf("the end is %v, want %q", err, c.want)
			}
		})
	}
}

func TestOneAtATime(t *testing.T) {
	run, r := runner(t, "trap 'echo ended; exit 0' TERM; echo begun; while :; do sleep 0.05; done")
	if err := run.Apply("x"); err != nil {
		t.Fatal(err)
	}
	if err := run.Apply("y"); !errors.Is(err, ErrBusy) {
		t.Errorf("a second playbook: %v", err)
	}
	run.Close()
	if err := r.end(t); !errors.Is(err, errStopping) {
		t.Errorf("the end is %v", err)
	}
	if err := run.Apply("z"); !errors.Is(err, errStopping) {
		t.Errorf("a playbook at the end: %v", err)
	}
}

func TestTooLong(t *testing.T) {
	run, r := runner(t, "sleep 1000 & echo $!; wait")
	run.limit = 200 * time.Millisecond
	if err := run.Apply("x"); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); !errors.Is(err, errTooLong) {
		t.Errorf("the end is %v", err)
	}
	if err := run.Apply("x"); err != nil {
		t.Errorf("the next one: %v", err)
	}
	r.end(t)
}

func TestRefused(t *testing.T) {
	run, _ := runner(t, "")
	for text, want := range map[string]string{
		" \n": "empty", strings.Repeat("a", maxPlaybook+1): "1048577 bytes",
	} {
		if err := run.Apply(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	run.environ = []string{"PATH=/nowhere:relative"}
	if err := run.Apply("x"); err == nil || !strings.Contains(err.Error(), "sudo apt install ansible-core") {
		t.Errorf("without ansible: %v", err)
	}
}

// Much output comes in few calls, long lines are cut.
func TestOutputIsBounded(t *testing.T) {
	run, r := runner(t, `i=0; while [ $i -lt 1000 ]; do echo $i; i=$((i+1)); done; head -c 100000 /dev/zero | tr '\0' a; echo; printf 'bad \377\n'`)
	run.batch = patience
	if err := run.Apply("x"); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); err != nil {
		t.Fatal(err)
	}
	if len(r.lines) != 1002 || r.calls > 1002/batchLines+2 {
		t.Fatalf("%d lines in %d calls", len(r.lines), r.calls)
	}
	for i, line := range r.lines[:1000] {
		if line != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	if n := len(r.lines[1000]); n != maxLine+3 || !utf8.ValidString(r.lines[1001]) {
		t.Errorf("a line of %d bytes, and %q", n, r.lines[1001])
	}
}
