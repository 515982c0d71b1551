package dbus

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

const stockName = "io.github.auberge_vm.Stock"

// stock is a server as one writes it with godbus.
type stock struct{}

func (stock) Echo(b []byte) ([]byte, *dbus.Error) { return b, nil }

func serveStock(b *testing.B, bus *dbustest.Bus) {
	b.Helper()
	c := bus.Connect(b)
	if err := c.Export(stock{}, ConciergePath, stockName); err != nil {
		b.Fatal(err)
	}
	if _, err := c.RequestName(stockName, 0); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCall compares GetVmInfo (request parsed, caller known, rights
// checked, response encoded) with a stock godbus server that echoes as many
// bytes: long messages, and many short ones at once. The client is the same.
// What one short call costs, make bench tells.
func BenchmarkCall(b *testing.B) {
	bus := dbustest.Lax(b)
	serve(b, bus, &handler{getVmInfo: echo}, Options{})
	serveStock(b, bus)
	guarded := dbustest.Lax(b)
	newStandIn(b, guarded, func(question) (bool, bool) { return true, false })
	serve(b, guarded, &handler{getVmInfo: echo}, Options{Polkit: true})
	for _, size := range []int{60, 64 << 10, 1 << 20} {
		request, err := proto.Marshal(&conciergepb.GetVmInfoRequest{Name: strings.Repeat("x", size)})
		if err != nil {
			b.Fatal(err)
		}
		ours := infoCall(request)
		theirs := infoCall(request)
		theirs.destination, theirs.iface, theirs.member = stockName, stockName, "Echo"
		for _, server := range []struct {
			name string
			bus  *dbustest.Bus
			o    *outgoing
		}{{"auberge", bus, ours}, {"auberge with polkit", guarded, ours}, {"godbus", bus, theirs}} {
			if size == 60 {
				b.Run(fmt.Sprintf("%s/%d/pipelined", server.name, size), func(b *testing.B) { pipelined(b, server.bus, server.o) })
				continue
			}
			b.Run(fmt.Sprintf("%s/%d", server.name, size), func(b *testing.B) { sequential(b, server.bus, server.o) })
		}
	}
}

// sequential reports the median, which a busy machine disturbs less.
func sequential(b *testing.B, bus *dbustest.Bus, o *outgoing) {
	c := rawConnect(b, bus)
	defer c.sock.Close()
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		if m := c.roundTrip(o); m.typ != typeReturn {
			b.Fatalf("%+v", m.header)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
}

// pipelined keeps 32 calls in progress.
func pipelined(b *testing.B, bus *dbustest.Bus, o *outgoing) {
	c := rawConnect(b, bus)
	defer c.sock.Close()
	open := 0
	receive := func() {
		m, err := c.r.next()
		if err != nil || m.typ != typeReturn {
			if m != nil && m.typ == typeSignal {
				return
			}
			b.Fatalf("%+v, %v", m, err)
		}
		open--
	}
	for b.Loop() {
		if err := c.send(o); err != nil {
			b.Fatal(err)
		}
		for open++; open >= 32; {
			receive()
		}
	}
	for open > 0 {
		receive()
	}
}
