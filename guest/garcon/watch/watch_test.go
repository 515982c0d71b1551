package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

type home struct {
	*Files
	t        *testing.T
	dir      string
	reported chan string
}

func newHome(t *testing.T) *home {
	t.Helper()
	h := &home{t: t, dir: t.TempDir(), reported: make(chan string, 1000)}
	f, err := NewFiles(h.dir, func(path string) { h.reported <- path }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f.coalesce = 50 * time.Millisecond
	h.Files = f
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return h
}

func (h *home) mkdir(name string) {
	h.t.Helper()
	if err := os.Mkdir(filepath.Join(h.dir, name), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) touch(name string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(name), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) add(name string) {
	h.t.Helper()
	if err := h.Add(name); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) next() string {
	h.t.Helper()
	select {
	case path := <-h.reported:
		return path
	case <-time.After(patience):
		h.t.Fatal("nothing is reported")
		return ""
	}
}

func (h *home) expect(want string) {
	h.t.Helper()
	if got := h.next(); got != want {
		h.t.Fatalf("%q is reported, want %q", got, want)
	}
}

func TestChanges(t *testing.T) {
	h := newHome(t)
	h.mkdir("a")
	h.mkdir("a/b")
	h.add("")
	h.add("a/b")
	h.add("a/b")        // once more is no more
	h.mkdir("a/b/file") // one event
	h.expect("a/b")
	h.mkdir("file") // one event
	h.expect("")
	if err := os.Remove(filepath.Join(h.dir, "a/b/file")); err != nil {
		t.Fatal(err)
	}
	h.expect("a/b")
}

// Many changes are one report.
func TestCoalesced(t *testing.T) {
	h := newHome(t)
	h.coalesce = 500 * time.Millisecond
	h.mkdir("a")
	h.mkdir("end")
	h.add("a")
	h.add("end")
	for i := range 200 {
		h.touch(fmt.Sprintf("a/%d", i))
	}
	h.touch("end/file")
	reports := 0
	for h.next() != "end" {
		reports++
	}
	if reports > 20 { // a slow machine gets a few
		t.Errorf("200 changes are %d reports", reports)
	}
}

func TestRemovedDirectory(t *testing.T) {
	h := newHome(t)
	h.mkdir("a")
	h.add("a")
	if err := os.Remove(filepath.Join(h.dir, "a")); err != nil {
		t.Fatal(err)
	}
	h.expect("a")
	if err := h.Add("a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is no more is watched: %v", err)
	}
	h.mkdir("a")
	h.add("a")
	h.touch("a/file")
	h.expect("a")
	if err := h.Remove("a"); err != nil {
		t.Error(err)
	}
	if err := h.Remove("a"); err == nil {
		t.Error("a watch ends twice")
	}
}

// One directory by two names: both are reported, and one stays when the other
// ends.
func TestTwoNames(t *testing.T) {
	h := newHome(t)
	h.mkdir("a")
	if err := os.Symlink("a", filepath.Join(h.dir, "link")); err != nil {
		t.Fatal(err)
	}
	h.add("a")
	h.add("link")
	h.mkdir("a/1") // one event
	h.expect("a")
	h.expect("link")
	if err := h.Remove("a"); err != nil {
		t.Fatal(err)
	}
	h.mkdir("a/2") // one event
	h.expect("link")
}

func TestNoWayOut(t *testing.T) {
	h := newHome(t)
	outside := t.TempDir()
	for name, to := range map[string]string{"absolute": outside, "relative": "../.."} {
		if err := os.Symlink(to, filepath.Join(h.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.touch("file")
	for _, path := range []string{
		"..", "a/../..", "../" + filepath.Base(outside), outside, "absolute", "relative", "file", "none",
		"a\x00b", strings.Repeat("a/", maxPath), "file/.",
	} {
		if err := h.Add(path); err == nil {
			t.Errorf("%.40q is watched", path)
		}
	}
	if n := len(h.Paths()); n != 0 {
		t.Errorf("%d watches are left", n)
	}
}

func TestBounded(t *testing.T) {
	h := newHome(t)
	for i := range maxWatches {
		h.mkdir(fmt.Sprint(i))
		h.add(fmt.Sprint(i))
	}
	h.mkdir("more")
	if err := h.Add("more"); err == nil || !strings.Contains(err.Error(), "128 directories") {
		t.Errorf("one more: %v", err)
	}
	h.add("7") // a known one still
	if err := h.Remove("5"); err != nil {
		t.Fatal(err)
	}
	h.add("more")
}

func TestDisk(t *testing.T) {
	ticks := make(chan time.Time)
	answers := []uint64{lowSpace, lowSpace - 1, 0, lowSpace + 5}
	looks := 0
	reported := make(chan uint64, 10)
	d := NewDisk("/", func(free uint64) { reported <- free }, slog.New(slog.DiscardHandler))
	d.ticks = ticks
	d.free = func(string) (uint64, error) {
		looks++
		if looks > len(answers) {
			return 0, errors.New("no answer")
		}
		return answers[looks-1], nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.Run(ctx)
	}()
	for range answers {
		ticks <- time.Time{}
	}
	cancel()
	<-done
	close(reported)
	var got []uint64
	for free := range reported {
		got = append(got, free)
	}
	if fmt.Sprint(got) != fmt.Sprint([]uint64{lowSpace - 1, 0}) {
		t.Errorf("reported: %v", got)
	}
}

func TestFree(t *testing.T) {
	if free, err := Free(t.TempDir()); err != nil || free == 0 {
		t.Errorf("%d bytes are free, %v", free, err)
	}
	if _, err := Free("/no/such/place"); err == nil {
		t.Error("a place that is none has room")
	}
}
