package maitred_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/auberge-vm/auberge/guestlink"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

const collectUserLogs = "/vm_tools.LogCollector/CollectUserLogs"

// An endpoint is where guests reach the host, with a way to see that it serves
// and one to see what it has let through.
type endpoint struct {
	name, path, method string
	// connections is how many one guest may have.
	connections int
	// good makes a call that must be answered, while the others go on.
	good func() error
	// most is how many handlers of raw calls ran at once.
	most func() int64
}

// endpoints starts all that the host serves for one guest. Handlers of the
// collector's raw calls stay, whatever becomes of their calls: they stand for
// the slowest there could be.
func endpoints(t *testing.T) []endpoint {
	t.Helper()
	var now, most atomic.Int64
	over := make(chan struct{})
	_, logs, _ := collect(t, func(_ context.Context, kernel bool, _ []guestlink.LogRecord) error {
		if kernel {
			return nil
		}
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		<-over
		return nil
	})
	t.Cleanup(func() { close(over) }) // before the collector waits for them
	p := newPair(t, nil)
	starting := p.listener()
	shipping, _ := shipper(t, logs)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return []endpoint{
		{"StartupListener", p.endpoint, vmReady, 8, func() error {
			_, err := starting.VmReady(ctx, &pb.EmptyMessage{})
			return err
		}, func() int64 { return 0 }},
		{"LogCollector", logs, collectUserLogs, 4, func() error {
			_, err := shipping.CollectKernelLogs(ctx, &pb.LogRequest{})
			return err
		}, most.Load},
	}
}

// rawCall is the frames of one unary call with an empty message, without its
// end when that is not wanted.
func rawCall(f *http2.Framer, stream uint32, path string, end bool) error {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	e.SetMaxDynamicTableSize(0)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "host"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil || !end {
		return err
	}
	return f.WriteData(stream, true, binary.BigEndian.AppendUint32([]byte{0}, 0))
}

// raw opens a connection on which the answers are thrown away.
func (e endpoint) raw(t *testing.T) (net.Conn, *http2.Framer) {
	t.Helper()
	c, err := net.Dial("unix", e.path)
	if err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, nil)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() { io.Copy(io.Discard, c) })
	t.Cleanup(func() {
		c.Close()
		reading.Wait()
	})
	return c, f
}

// Calls that are given up as soon as they are made (CVE-2023-44487,
// GHSA-hrxh-6v49-42gf) cost the host no more than the calls that one
// connection may have in progress, and another connection is served meanwhile.
func TestRapidResets(t *testing.T) {
	for _, e := range endpoints(t) {
		t.Run(e.name, func(t *testing.T) {
			if err := e.good(); err != nil {
				t.Fatal("before the flood:", err)
			}
			runtime.GC()
			var before, during runtime.MemStats
			runtime.ReadMemStats(&before)
			goroutines := runtime.NumGoroutine()

			// One connection is left to those with manners.
			attackers := e.connections - 1
			var attack sync.WaitGroup
			var sent atomic.Int64
			const enough = 1000
			reached := make(chan struct{})
			over := make(chan struct{})
			var conns []net.Conn
			for range attackers {
				c, f := e.raw(t)
				conns = append(conns, c)
				attack.Go(func() {
					for stream := uint32(1); stream < 1<<30; stream += 2 {
						select {
						case <-over:
							return
						default:
						}
						// A host that has enough of it stops to read, or ends
						// the connection.
						c.SetWriteDeadline(time.Now().Add(patience))
						if rawCall(f, stream, e.method, true) != nil || f.WriteRSTStream(stream, http2.ErrCodeCancel) != nil {
							return
						}
						if sent.Add(1) == enough {
							close(reached)
						}
					}
				})
			}
			// A collector whose handlers never end reads no more when they are
			// as many as may be: then there is no flood either.
			if e.name == "StartupListener" {
				<-reached
			}
			for range 20 {
				if err := e.good(); err != nil {
					t.Fatal("during the flood:", err)
				}
			}
			runtime.ReadMemStats(&during)
			if grown := int64(during.HeapInuse) - int64(before.HeapInuse); grown > 64<<20 {
				t.Errorf("the flood takes %d MiB", grown>>20)
			}
			// The host's, with its calls in progress, and the test's own.
			const perConnection, perCall = 10, 2
			if n := runtime.NumGoroutine() - goroutines; n > attackers*(perConnection+16*perCall) {
				t.Errorf("the flood takes %d goroutines", n)
			}
			if most := e.most(); most > int64(attackers*2) {
				t.Errorf("%d calls are handled at once for %d connections", most, attackers)
			}
			t.Logf("%d calls were given up, at most %d handled at once, %d goroutines more", sent.Load(), e.most(), runtime.NumGoroutine()-goroutines)
			close(over)
			for _, c := range conns {
				c.Close() // also wakes who waits for the host to read
			}
			attack.Wait()
			if err := e.good(); err != nil {
				t.Error("after the flood:", err)
			}
		})
	}
}

// Paths that are none, one without its slash above all (CVE-2026-33186), reach
// no handler.
func TestBadPaths(t *testing.T) {
	heard := make(chan struct{}, 100)
	_, logs, _ := collect(t, func(context.Context, bool, []guestlink.LogRecord) error {
		heard <- struct{}{}
		return nil
	})
	p := newPair(t, nil)
	for _, e := range []struct{ path, method string }{{p.endpoint, vmReady}, {logs, collectUserLogs}} {
		at := &pair{t: t, endpoint: e.path, Link: p.Link}
		for _, path := range []string{
			e.method[1:], "", "/", "//", "*", " " + e.method, e.method + "/", "/" + e.method, e.method + "?x", e.method + "\x00",
			"http://host" + e.method, "." + e.method, "/%76m_tools.StartupListener/VmReady", "/vm_tools.StartupListener/", "/VmReady",
		} {
			c := at.dialRaw()
			if answer := at.greet(c).call(path); answer == nil {
				t.Errorf("%q at %s is not even refused", path, e.method)
			}
			c.Close() // a guest has only so many
		}
	}
	if p.isReady() || len(heard) > 0 {
		t.Errorf("ready is %t, %d logs are heard", p.isReady(), len(heard))
	}
	// The same bytes with the right path are good calls.
	p.greet(p.dialRaw()).call(vmReady)
	at := &pair{t: t, endpoint: logs, Link: p.Link}
	at.greet(at.dialRaw()).call(collectUserLogs)
	if !p.isReady() || len(heard) != 1 {
		t.Errorf("the raw calls do not work at all: ready is %t, %d logs are heard", p.isReady(), len(heard))
	}
}

// A guest that ends in the middle of a request, on as many connections as it
// may have, harms itself at most: other guests' endpoints do not notice, and
// its own are as good as new when it lets go.
func TestHalfRequests(t *testing.T) {
	for _, e := range endpoints(t) {
		others := endpoints(t)
		for name, half := range map[string]func(net.Conn, *http2.Framer) error{
			"a greeting": func(net.Conn, *http2.Framer) error { return nil },
			"half a frame": func(c net.Conn, _ *http2.Framer) error {
				_, err := c.Write([]byte{0, 0, 100, 1, 4, 0, 0})
				return err
			},
			"headers without an end": func(_ net.Conn, f *http2.Framer) error {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x83}})
			},
			"a call without its message": func(_ net.Conn, f *http2.Framer) error { return rawCall(f, 1, e.method, false) },
			"half a message": func(_ net.Conn, f *http2.Framer) error {
				if err := rawCall(f, 1, e.method, false); err != nil {
					return err
				}
				return f.WriteData(1, false, []byte{0, 0, 0})
			},
		} {
			t.Run(e.name+"/"+name, func(t *testing.T) {
				var conns []net.Conn
				for range e.connections + 4 {
					c, f := e.raw(t)
					conns = append(conns, c)
					if err := half(c, f); err != nil {
						t.Fatal(err)
					}
				}
				for _, other := range others {
					if err := other.good(); err != nil {
						t.Errorf("another guest's %s: %v", other.name, err)
					}
				}
				for _, c := range conns {
					c.Close()
				}
				if err := e.good(); err != nil {
					t.Error("afterwards:", err)
				}
			})
		}
	}
}
