package concierge

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/auberge-vm/auberge/policy"
)

func ptr[T any](v T) *T { return &v }

func TestSettingsAreMerged(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	configure := func(sub policy.Subject, name string, change Settings) {
		t.Helper()
		if err := s.ConfigureVm(t.Context(), sub, name, change); err != nil {
			t.Fatal(err)
		}
	}
	check := func(sub policy.Subject, name string, want Settings) {
		t.Helper()
		if got, err := s.settings(keyOf(sub.Owner, name)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s of %+v: %+v, %v; want %+v", name, sub.Owner, got, err, want)
		}
	}
	check(alice, "x", Settings{})
	configure(alice, "x", Settings{MemoryMiB: ptr(uint64(256))})
	configure(alice, "x", Settings{CPUs: ptr(uint32(1))})
	configure(alice, "x", Settings{Network: ptr(NetworkNone)})
	all := Settings{MemoryMiB: ptr(uint64(256)), CPUs: ptr(uint32(1)), Network: ptr(NetworkNone)}
	check(alice, "x", all)
	configure(alice, "x", Settings{})
	check(alice, "x", all)
	configure(alice, "x", Settings{MemoryMiB: ptr(uint64(128))})
	all.MemoryMiB = ptr(uint64(128))
	check(alice, "x", all)
	// Nobody else's VM of that name, and no other VM, has them.
	labelled := alice
	labelled.Owner.Label = "work"
	for _, sub := range []policy.Subject{subject(64102), labelled} {
		check(sub, "x", Settings{})
	}
	check(alice, "y", Settings{})
	// They outlive the service.
	s.Close()
	s = b.serve()
	check(alice, "x", all)
}

func TestSettingsAreChecked(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	for name, change := range map[string]Settings{
		"little memory":     {MemoryMiB: ptr(uint64(minMemoryMiB - 1))},
		"no memory":         {MemoryMiB: ptr(uint64(0))},
		"endless memory":    {MemoryMiB: ptr(uint64(math.MaxUint64))},
		"no CPU":            {CPUs: ptr(uint32(0))},
		"CPUs without end":  {CPUs: ptr(uint32(math.MaxUint32))},
		"too many by one":   {CPUs: ptr(hostCPUs() + 1)},
		"no network mode":   {Network: ptr(NetworkMode(""))},
		"another mode":      {Network: ptr(NetworkMode("bridge"))},
		"one good, one not": {MemoryMiB: ptr(uint64(256)), Network: ptr(NetworkMode("x"))},
	} {
		if err := s.ConfigureVm(t.Context(), alice, "x", change); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.ConfigureVm(t.Context(), alice, "a/b", Settings{}); !errors.Is(err, ErrInvalid) || !errors.Is(err, policy.ErrName) {
		t.Errorf("a name that is none: %v", err)
	}
	if got, err := s.settings(keyOf(alice.Owner, "x")); err != nil || !reflect.DeepEqual(got, Settings{}) {
		t.Errorf("refused settings were stored: %+v, %v", got, err)
	}
	if hostCPUs() < 1 || hostCPUs() > 255 || hostCPUs() > uint32(runtime.NumCPU()) {
		t.Errorf("a VM can have %d CPUs", hostCPUs())
	}
}

func TestDamagedSettings(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	path := s.settingsPath(keyOf(alice.Owner, "x"))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{", `{"cpus":"two"}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.settings(keyOf(alice.Owner, "x")); err == nil || !strings.Contains(err.Error(), `"x"`) {
			t.Errorf("%q: %v", text, err)
		}
		if err := s.ConfigureVm(t.Context(), alice, "x", Settings{CPUs: ptr(uint32(1))}); err == nil {
			t.Errorf("%q was overwritten", text)
		}
	}
}

// Changes of different settings at the same time are all kept.
func TestConfigureAtOnce(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	var wg sync.WaitGroup
	for _, change := range []Settings{{MemoryMiB: ptr(uint64(256))}, {CPUs: ptr(uint32(1))}, {Network: ptr(NetworkUser)}} {
		wg.Go(func() {
			for range 5 {
				if err := s.ConfigureVm(t.Context(), alice, "x", change); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := s.settings(keyOf(alice.Owner, "x"))
	if err != nil || got.MemoryMiB == nil || got.CPUs == nil || got.Network == nil {
		t.Errorf("%+v, %v", got, err)
	}
	// Who does not want to wait for a turn does not have to.
	s.settingsTurn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.ConfigureVm(ctx, alice, "x", Settings{}); !errors.Is(err, context.Canceled) {
		t.Errorf("while it is another's turn: %v", err)
	}
	<-s.settingsTurn
}

func TestHostMemory(t *testing.T) {
	total, available := hostMemory()
	if total < 64<<20 || available == 0 || available > total {
		t.Errorf("%d of %d bytes", available, total)
	}
}
