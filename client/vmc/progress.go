package vmc

import (
	"fmt"
	"os"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// A progress shows a person at a terminal that a start goes on: what the
// service has announced, and for how long it has taken.
type progress struct {
	once sync.Once
	quit chan struct{}
	done chan struct{}
}

// watch shows the start of a VM until end is called. Scripts, and output that
// is no terminal, see nothing of it.
func (a *app) watch(s *session, name string) *progress {
	p := &progress{quit: make(chan struct{}), done: make(chan struct{})}
	f, ok := a.err.(*os.File)
	if !ok || a.json || !term.IsTerminal(int(f.Fd())) {
		close(p.done)
		return p
	}
	signals := make(chan *godbus.Signal, 16)
	s.conn.Signal(signals)
	go func() {
		defer close(p.done)
		defer s.conn.RemoveSignal(signals)
		p.show(f, name, s.table.Interface, signals)
	}()
	return p
}

func (p *progress) show(f *os.File, name, iface string, signals <-chan *godbus.Signal) {
	begin := time.Now()
	what := "preparing"
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	defer fmt.Fprint(f, "\r\x1b[K")
	for {
		fmt.Fprintf(f, "\r\x1b[K%s: %s, %.1f s", name, what, time.Since(begin).Seconds())
		select {
		case sig := <-signals:
			if sig == nil {
				return
			}
			var m pb.VmStartingUpSignal
			if sig.Name == iface+".VmStartingUpSignal" && len(sig.Body) == 1 {
				if b, ok := sig.Body[0].([]byte); ok && proto.Unmarshal(b, &m) == nil && m.Name == name {
					what = "booting"
				}
			}
		case <-tick.C:
		case <-p.quit:
			return
		}
	}
}

func (p *progress) end() {
	p.once.Do(func() { close(p.quit) })
	<-p.done
}
