package vmc

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/dbus/dbustest"
)

// A logService has one log, as vm_concierge does, and can be killed in the
// middle of a line.
type logService struct {
	t    *testing.T
	conn *godbus.Conn

	mu      sync.Mutex
	log     []string // without their ends
	removed bool
	options []map[string]godbus.Variant
	follow  []*os.File // writing ends
	readers []*os.File // the others, open until they have been sent
}

func newLogService(t *testing.T, bus *dbustest.Bus, log ...string) *logService {
	t.Helper()
	s := &logService{t: t, conn: bus.Connect(t), log: log}
	if err := s.conn.Export(s, dbus.ConciergePath, dbus.Concierge1Name); err != nil {
		t.Fatal(err)
	}
	if _, err := s.conn.RequestName(dbus.ConciergeName, godbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.die)
	return s
}

func (s *logService) OpenVmLogs(name, owner string, options map[string]godbus.Variant) (godbus.UnixFD, *godbus.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options = append(s.options, options)
	if s.removed || name != "x" {
		return 0, godbus.NewError(dbus.ErrorNotFound, []any{"no log of " + name})
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, godbus.MakeFailedError(err)
	}
	fd := godbus.UnixFD(r.Fd())
	s.readers = append(s.readers, r)
	from := 0
	if n, ok := options["lines"].Value().(uint32); ok {
		from = max(len(s.log)-int(n), 0)
	}
	text := ""
	for _, l := range s.log[from:] {
		text += l + "\n"
	}
	if _, err := w.WriteString(text); err != nil {
		return 0, godbus.MakeFailedError(err)
	}
	if options["follow"].Value() == true {
		s.follow = append(s.follow, w)
	} else {
		w.Close()
	}
	return fd, nil
}

// write adds text to what is followed.
func (s *logService) write(text string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.follow {
		if _, err := w.WriteString(text); err != nil {
			s.t.Error(err)
		}
	}
}

// cut ends all logs.
func (s *logService) cut(removed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed = removed
	for _, w := range s.follow {
		w.Close()
	}
	s.follow = nil
}

// die leaves the bus as a killed process does.
func (s *logService) die() {
	s.conn.Close()
	s.cut(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.readers {
		r.Close()
	}
	s.readers = nil
}

func numbered(from, to int) []string {
	var lines []string
	for i := from; i <= to; i++ {
		lines = append(lines, fmt.Sprintf("line %d", i))
	}
	return lines
}

func TestLogs(t *testing.T) {
	bus := dbustest.Lax(t)
	newLogService(t, bus, numbered(1, 9)...)
	for want, args := range map[string][]string{
		strings.Join(numbered(1, 9), "\n") + "\n": nil,
		"line 8\nline 9\n":                        {"-n", "2"},
		"line 9\n":                                {"--lines", "1", "--owner", "label"},
	} {
		out, errs, code := vmc(t, "", append([]string{"logs", "x", "--bus", bus.Address}, args...)...)
		if out != want || code != 0 {
			t.Errorf("%v: %d, %q, %s; want %q", args, code, out, errs, want)
		}
	}
	if _, errs, code := vmc(t, "", "logs", "y", "--bus", bus.Address); code != 3 || !strings.Contains(errs, "no log of y") {
		t.Errorf("no such log: %d, %s", code, errs)
	}
	if _, errs, code := vmc(t, "", "logs", "x", "-n", "0"); code != 2 || !strings.Contains(errs, "at least 1") {
		t.Errorf("no lines: %d, %s", code, errs)
	}
}

// A log that is followed goes on when the service is back: no line is missing
// and none comes twice, though the beginning is gone, the file has grown
// meanwhile and half a line was read.
func TestFollowOverRestarts(t *testing.T) {
	for _, before := range []int{1, 3, tailLines, 3 * tailLines} {
		t.Run(fmt.Sprint(before), func(t *testing.T) {
			bus := dbustest.Lax(t)
			s := newLogService(t, bus, numbered(1, before)...)
			p := begin(t, "logs", "-f", "x", "--bus", bus.Address)
			for _, l := range numbered(1, before) {
				p.out.next(l + "\n")
			}
			s.write("line ")
			s.die()
			p.errs.next("has left the bus")
			s = newLogService(t, bus, numbered(max(before-tailLines+1, 1), before+3)...)
			p.errs.next("is back")
			for _, l := range numbered(before+1, before+3) {
				p.out.next(l + "\n")
			}
			s.write(fmt.Sprintf("line %d\n", before+4))
			p.out.next(fmt.Sprintf("line %d\n", before+4))

			// The place is lost: all that there is comes.
			s.die()
			p.errs.next("has left the bus")
			s = newLogService(t, bus, "another", "log")
			p.errs.next("may be missing")
			p.errs.next("is back")
			p.out.next("another\n")
			p.out.next("log\n")

			p.interrupt()
			p.ends(0)
		})
	}
}

func TestFollowToTheEnd(t *testing.T) {
	bus := dbustest.Lax(t)
	s := newLogService(t, bus, numbered(1, 3)...)
	p := begin(t, "logs", "-f", "-n", "1", "x", "--bus", bus.Address)
	p.out.next("line 3\n")
	s.cut(true)
	p.errs.next("was removed")
	p.ends(0)
	if got := fmt.Sprint(s.options[0]["lines"].Value(), s.options[0]["follow"].Value()); got != "1 true" {
		t.Errorf("asked for %s", got)
	}
}
