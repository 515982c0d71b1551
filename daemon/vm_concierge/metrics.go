package main

import (
	"context"
	"fmt"
	"log/slog"
	"os/user"
	"strconv"
	"time"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/concierge/metrics"
	"github.com/auberge-vm/auberge/dbus"
)

// busObserver has the metrics hear of the calls on the bus.
type busObserver struct{ metrics *metrics.Metrics }

func (b busObserver) Method(iface, member string) func(time.Duration, dbus.Outcome) {
	done := b.metrics.BusMethod(iface, member)
	return func(took time.Duration, outcome dbus.Outcome) { done(took, string(outcome)) }
}

// measure has everything measured that is to be served as metrics: nothing
// without --metrics. What it returns serves them until its result is called.
func (o *options) measure(log *slog.Logger, cfg *concierge.Config, bus *dbus.Options) (func(context.Context, *concierge.Service) (func(), error), error) {
	if o.metrics == "" {
		return func(context.Context, *concierge.Service) (func(), error) { return func() {}, nil }, nil
	}
	group := -1
	if o.metricsGroup != "" {
		g, err := user.LookupGroup(o.metricsGroup)
		if err != nil {
			return nil, fmt.Errorf("--metrics-group: %w", err)
		}
		if group, err = strconv.Atoi(g.Gid); err != nil {
			return nil, fmt.Errorf("--metrics-group: %w", err)
		}
	}
	m := metrics.New()
	cfg.Observer, bus.Observer = m, busObserver{m}
	return func(ctx context.Context, s *concierge.Service) (func(), error) {
		l, err := metrics.Listen(o.metrics, group)
		if err != nil {
			return nil, err
		}
		m.Watch(s)
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.Serve(ctx, l, log)
		}()
		return func() {
			cancel()
			<-done
		}, nil
	}, nil
}
