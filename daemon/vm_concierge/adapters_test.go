package main

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// What is said before the bus is reached waits a while; a service that ends
// without having reached it waits for nothing.
func TestEventsWithoutABus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &events{log: slog.New(slog.DiscardHandler), ready: make(chan struct{}), over: make(chan struct{})}
		began := time.Now()
		e.Emit(1, "VmStoppedSignal", &pb.VmStoppedSignal{})
		if waited := time.Since(began); waited != emitTimeout {
			t.Errorf("waited for %v", waited)
		}
		close(e.over)
		began = time.Now()
		for range 1000 {
			e.EmitChange(1, "VmChanged", "instance", 1, nil)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("at the end it waited for %v", waited)
		}
	})
}
