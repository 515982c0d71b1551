package main

import (
	"context"
	"os"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
)

// handlers are what the service has of the two interfaces.
type handlers interface {
	dbus.Cicerone
	EnsureContainer(ctx context.Context, s policy.Subject, cid uint32, container, user string) error
	ExportContainer(ctx context.Context, s policy.Subject, vm, container string, out *os.File) error
	ImportContainer(ctx context.Context, s policy.Subject, vm, container string, in *os.File) error
	ListContainers(ctx context.Context, s policy.Subject, vm string) ([]map[string]any, error)
	ListApplications(ctx context.Context, s policy.Subject, vm, container string) (*appspb.ApplicationList, error)
}
