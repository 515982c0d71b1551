package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"
)

// clientOptions are the flags of garcon --client.
type clientOptions struct{}

func (o *clientOptions) add(*pflag.FlagSet) {}

func (o *clientOptions) ask(context.Context, []string) error {
	return errors.New("--client: nothing to ask the host for was given")
}
