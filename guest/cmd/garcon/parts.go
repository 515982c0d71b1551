package main

import (
	"context"
	"os"
	"sync"

	"github.com/auberge-vm/auberge/guest/garcon"
	"github.com/auberge-vm/auberge/guest/garcon/apps"
	"github.com/auberge-vm/auberge/guest/garcon/bus"
)

// parts makes what knows applications.
func (o *serverOptions) parts(t garcon.Tools) (garcon.Parts, error) {
	m := apps.New(apps.Config{
		Log: t.Log, Host: t.Host, Owner: t.Packages.OwnerOf, Environ: t.Environ, NoStartupNotify: o.noStartup,
		Paths: apps.PathsFrom(t.User.Home, os.Getenv),
	})
	b := bus.New(bus.Config{Log: t.Log, Host: t.Host, Address: bus.SessionAddress(os.Getenv), Types: m.Types})
	// Before the host knows this agent it refuses lists, and takes what keeps the
	// screen on for something of the agent before, with which it ends.
	known := make(chan struct{})
	var first sync.Once
	return garcon.Parts{
		Applications: m,
		Icons:        m,
		DesktopFile:  m.DesktopFile,
		Describe:     m.Describe,
		Ready: func() {
			again := true
			first.Do(func() { close(known); again = false })
			if again {
				m.Refresh()
			}
		},
		Run: func(ctx context.Context) {
			select {
			case <-known:
			case <-ctx.Done():
				return
			}
			var parts sync.WaitGroup
			defer parts.Wait()
			parts.Go(func() {
				if err := b.Run(ctx); err != nil {
					t.Log.Error("nothing is done for programs on the session's bus", "err", err)
				}
			})
			if err := m.Run(ctx); err != nil {
				t.Log.Error("the host is not told of applications any more", "err", err)
			}
		},
	}, nil
}
