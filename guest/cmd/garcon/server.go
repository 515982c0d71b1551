package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"
)

// serverOptions are the flags of garcon --server.
type serverOptions struct {
	anyUser   bool
	noStartup bool
}

func (o *serverOptions) add(f *pflag.FlagSet) {
	f.BoolVar(&o.anyUser, "allow_any_user", false, "run as another user than the container's, uid 1000")
	f.BoolVar(&o.noStartup, "no_startup_notify", false, "start applications without startup notification")
}

func (o *serverOptions) serve(context.Context) error { return errors.New("not yet") }
