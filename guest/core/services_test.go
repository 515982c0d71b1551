package core

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	"golang.org/x/sys/unix"
)

func TestRespawnLimit(t *testing.T) {
	at := func(seconds ...int) []time.Time {
		var times []time.Time
		for _, s := range seconds {
			times = append(times, time.Unix(int64(s), 0))
		}
		return times
	}
	tests := map[string]struct {
		ends    []time.Time
		refused int // index of the first refusal, -1 for none
	}{
		"ten at once are allowed":              {at(0, 0, 0, 0, 0, 0, 0, 0, 0, 0), -1},
		"the eleventh is not":                  {at(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 10},
		"the eleventh in the 30th second":      {at(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 29), 10},
		"the eleventh after 30 seconds":        {at(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30), -1},
		"one every four seconds is no trouble": {at(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60), -1},
		"the window slides":                    {at(0, 20, 20, 20, 20, 20, 20, 20, 20, 20, 31, 32), 11},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			limit := respawnLimit{max: respawnMax, window: respawnWindow}
			for i, end := range tt.ends {
				if got, want := limit.allow(end), i != tt.refused; got != want {
					t.Fatalf("respawn %d: allowed %v, want %v", i, got, want)
				}
			}
		})
	}
}

func TestServiceThatKeepsEndingIsStopped(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	table := newTable(t)
	var log bytes.Buffer
	s := NewSupervisor(table, slog.New(slog.NewTextHandler(&log, nil)))
	s.now = func() time.Time { return time.Unix(0, 0) }
	trace := t.TempDir() + "/trace"
	if err := s.Start("flapper", shell("echo run >> "+trace+"; exit 5")); err != nil {
		t.Fatal(err)
	}
	s.running.Wait() // it gives up by itself
	data, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if runs := strings.Count(string(data), "run"); runs != 1+respawnMax {
		t.Errorf("it ran %d times, want %d", runs, 1+respawnMax)
	}
	for _, want := range []string{"service stopped: it ended too often", "service=flapper", `last="exit status 5"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
	s.Stop()
}

func TestServiceIsRestartedUntilSupervisionStops(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWPID|unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	s := NewSupervisor(table, quiet())
	clock := time.Unix(0, 0)
	s.now = func() time.Time { clock = clock.Add(4 * time.Second); return clock }
	fifo := t.TempDir() + "/fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Start("worker", shell("echo > "+fifo)); err != nil {
		t.Fatal(err)
	}
	for range 3 * respawnMax {
		readLine(t, fifo)
	}
	s.Stop()
	if err := s.Start("late", shell("exit 0")); !errors.Is(err, ErrTableClosed) {
		t.Errorf("a service started after Stop: %v", err)
	}
	if err := table.EndAll(time.Minute); err != nil {
		t.Error(err)
	}
}

func TestServiceThatCannotStartIsAnError(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	s := NewSupervisor(newTable(t), quiet())
	if err := s.Start("missing", Command{Path: "/nonexistent"}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("error %v, want ENOENT", err)
	}
	s.Stop()
}

// A service that is told to end may take its time, but not more than that.
func TestServiceIsToldToEnd(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWPID|unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	var log bytes.Buffer
	s := NewSupervisor(table, slog.New(slog.NewTextHandler(&log, nil)))
	fifo := t.TempDir() + "/fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"willing":   "trap 'exit 7' PWR; echo > " + fifo + "; while :; do sleep 0.01; done",
		"unwilling": "trap '' PWR; echo > " + fifo + "; while :; do sleep 0.01; done",
	} {
		if err := s.Start(name, shell(script)); err != nil {
			t.Fatal(err)
		}
		readLine(t, fifo)
	}
	s.Stop()
	s.End("willing", unix.SIGPWR, time.Hour)
	s.End("unwilling", unix.SIGPWR, 50*time.Millisecond)
	s.End("none", unix.SIGPWR, time.Hour)
	for _, want := range []string{`service=willing end="exit status 7"`, `"service still running" service=unwilling signal=SIGPWR`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
	if err := table.EndAll(time.Minute); err != nil {
		t.Error(err)
	}
}
