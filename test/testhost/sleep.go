package testhost

import (
	"context"
	"fmt"
	"time"
)

// Sleep suspends the machine to memory and returns when it sleeps.
func (h *Host) Sleep(ctx context.Context) error {
	if err := h.Run(ctx, "systemctl", "suspend", "--no-block"); err != nil {
		return err
	}
	return h.await(ctx, "suspended")
}

// Wake wakes a machine that sleeps.
func (h *Host) Wake(ctx context.Context) error {
	m, err := h.current()
	if err != nil {
		return err
	}
	if err := m.monitor.Execute(ctx, "system_wakeup", nil, nil); err != nil {
		return err
	}
	return h.await(ctx, "running")
}

// await waits for a state of the hypervisor.
func (h *Host) await(ctx context.Context, want string) error {
	m, err := h.current()
	if err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var state struct {
			Status string `json:"status"`
		}
		if err := m.monitor.Execute(ctx, "query-status", nil, &state); err != nil {
			return err
		}
		if state.Status == want {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the test host is %s, not %s: %w\n%s", state.Status, want, context.Cause(ctx), h.tail())
		}
	}
}
