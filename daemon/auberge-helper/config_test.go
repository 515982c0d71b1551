package main

import (
	"testing"

	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/daemon/setup/setuptest"
)

// Every setting is in the file that is installed, with its default.
func TestConfigurationFileIsComplete(t *testing.T) {
	var o options
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.addFlags(f)
	setuptest.Documented(t, f, "auberge-helper")
}
