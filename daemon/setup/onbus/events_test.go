package onbus

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
		e := NewEvents(slog.New(slog.DiscardHandler))
		began := time.Now()
		e.Emit(1, "VmStoppedSignal", &pb.VmStoppedSignal{})
		if waited := time.Since(began); waited != EmitTimeout {
			t.Errorf("waited for %v", waited)
		}
		e.Over()
		began = time.Now()
		for range 1000 {
			e.EmitChange(1, "VmChanged", "instance", 1, nil)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("at the end it waited for %v", waited)
		}
	})
}
