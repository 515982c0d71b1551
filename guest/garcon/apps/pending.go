package apps

import (
	"context"
	"log/slog"
	"sync"
	"time"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// pending tells the host how many lists are to come. Only the last number
// counts.
type pending struct {
	log  *slog.Logger
	host Host
	some chan struct{}

	mu   sync.Mutex
	want uint32
}

func newPending(log *slog.Logger, host Host) *pending {
	return &pending{log: log, host: host, some: make(chan struct{}, 1)}
}

// set never waits.
func (p *pending) set(n uint32) {
	p.mu.Lock()
	changed := p.want != n
	p.want = n
	p.mu.Unlock()
	if changed {
		select {
		case p.some <- struct{}{}:
		default:
		}
	}
}

func (p *pending) run(ctx context.Context) {
	var told uint32
	for {
		select {
		case <-p.some:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		n := p.want
		p.mu.Unlock()
		if n == told {
			continue
		}
		if err := p.host.PendingUpdateApplicationListCalls(ctx, &pb.PendingAppListUpdateCount{Count: n}); err != nil {
			if ctx.Err() != nil {
				return
			}
			p.log.Debug("the host did not hear of lists to come", "err", err)
			t := time.NewTimer(time.Second)
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
			select {
			case p.some <- struct{}{}:
			default:
			}
			continue
		}
		told = n
	}
}
