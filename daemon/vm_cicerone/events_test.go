package main

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

// One user's events, many or long, leave room for those of others.
func TestEventsOfOneUserAreBounded(t *testing.T) {
	for name, text := range map[string]string{"many": "", "long": strings.Repeat("a", 1<<20)} {
		e := newEvents(slog.New(slog.DiscardHandler))
		for range 2 * maxEvents {
			e.Emit(1, "ContainerShutdown", &ciceronepb.ContainerShutdownSignal{VmName: text})
		}
		e.Emit(2, "ContainerShutdown", &ciceronepb.ContainerShutdownSignal{VmName: "x"})
		e.mu.Lock()
		one, two := e.users[1], e.users[2]
		e.mu.Unlock()
		if one.events > maxUserEvents || one.bytes > maxUserBytes || one.events < 2 {
			t.Errorf("%s: %+v wait of one user", name, one)
		}
		if two.events != 1 {
			t.Errorf("%s: %+v wait of another", name, two)
		}
		e.close()
		if len(e.users) != 0 {
			t.Errorf("%s: %v are left", name, e.users)
		}
	}
}
