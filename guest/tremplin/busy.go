package tremplin

import (
	"context"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
)

// busyPause is the time between two attempts at what Incus is too busy for.
const busyPause = 500 * time.Millisecond

// onceFree does something with a container once Incus has let go of it: most
// operations cannot be cancelled there, and after a start or stop it has
// something to write down still.
func onceFree(ctx context.Context, do func() error) error {
	again := time.NewTicker(busyPause)
	defer again.Stop()
	for {
		err := do()
		if !incus.IsBusy(err) {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return err
		}
	}
}

// removeOnceFree stops and deletes a container.
func (s *Server) removeOnceFree(ctx context.Context, name string) error {
	return onceFree(ctx, func() error {
		i, err := s.incus.Instance(ctx, name)
		if err == nil && i.Status != incus.Stopped {
			err = s.stopNow(ctx, name)
		}
		if err == nil {
			err = s.incus.Delete(ctx, name)
		}
		return err
	})
}
