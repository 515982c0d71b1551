package tremplin

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
)

// A notice has the speed since the one before, and the first one has none.
func TestSpeedOfATransfer(t *testing.T) {
	_, s, host := newFakeIncus(t)
	says := func(form string, most uint64) {
		t.Helper()
		eventually(t, form, func() bool { return len(host.heard()) > 0 })
		heard := host.heard()
		var speed uint64
		if _, err := fmt.Sscanf(heard[len(heard)-1], form, &speed); err != nil || speed > most || speed < most-most/10 {
			t.Errorf("%q instead of %s with nearly %d (%v)", heard, form, most, err)
		}
		host.mu.Lock()
		host.got = nil
		host.mu.Unlock()
	}
	const hour = 3600
	longAgo := time.Now().Add(-time.Hour)
	m := importing{s: s, name: "penguin", from: &origin{size: 8 << 30}, read: 1 << 30}
	const uploading = "penguin IMPORTING_UPLOAD "
	if err := m.look(t.Context(), archive.Counts{}); err != nil {
		t.Fatal(err)
	}
	says(uploading+"12%% %d/s", 0)
	m.read, m.told = 2<<30, longAgo
	if err := m.look(t.Context(), archive.Counts{}); err != nil {
		t.Fatal(err)
	}
	says(uploading+"25%% %d/s", (1<<30)/hour)

	e := exporting{s: s, name: "penguin", bytes: 1 << 30}
	const streaming = "penguin EXPORTING_STREAMING %d/s"
	e.look(archive.Counts{})
	says(streaming, 0)
	e.bytes, e.told = 3<<30, longAgo
	e.look(archive.Counts{})
	says(streaming, (2<<30)/hour)
}

// An import for which there is no room says what it is known to need.
func TestAnImportsRoom(t *testing.T) {
	_, s, _ := newFakeIncus(t)
	m := importing{s: s, name: "penguin", from: &origin{}}
	if err := m.look(t.Context(), archive.Counts{Bytes: 1}); err != nil {
		t.Errorf("there is room for one byte: %v", err)
	}
	const huge = 1 << 60
	m.told = time.Time{}
	var full *spaceError
	if err := m.look(t.Context(), archive.Counts{Bytes: huge}); !errors.As(err, &full) || full.required != huge+spareSpace || full.available == 0 {
		t.Errorf("%v (%+v)", err, full)
	}
}
