package dbus

import (
	"context"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
)

// Cicerone1Name is our own interface of vm_cicerone.
const Cicerone1Name = "io.github.auberge_vm.Cicerone1"

// ensureTimeout is how long creating, setting up and starting a container may
// take together.
const ensureTimeout = 10 * time.Minute

// A Cicerone1 handles the methods of io.github.auberge_vm.Cicerone1. What is
// said of [Concierge1] holds here too. Files among the arguments are closed
// when the handler returns; one that keeps a file duplicates it.
type Cicerone1 interface {
	// EnsureContainer returns when a container of a VM, which it creates when
	// it is missing, has started and has the user.
	EnsureContainer(ctx context.Context, s policy.Subject, cid uint32, container, user string) error
	// ExportContainer begins to write a container to a file, ImportContainer
	// to make one of what a file holds. Signals tell how far that is.
	ExportContainer(ctx context.Context, s policy.Subject, vm, container string, out *os.File) error
	ImportContainer(ctx context.Context, s policy.Subject, vm, container string, in *os.File) error
	// ListContainers returns all containers of a VM, running or not.
	ListContainers(ctx context.Context, s policy.Subject, vm string) ([]map[string]any, error)
	// ListApplications returns what a container's agent has last told.
	ListApplications(ctx context.Context, s policy.Subject, vm, container string) (*appspb.ApplicationList, error)
	// GetServiceInfo returns how the service is set up on this host.
	GetServiceInfo(ctx context.Context, s policy.Subject) (map[string]any, error)
}

// Cicerone1Interface is the face of our own interface of vm_cicerone. With a
// nil h it describes the face to a client and can't be served.
func Cicerone1Interface(h Cicerone1) OwnInterface {
	own := OwnInterface{Path: CiceronePath, Name: Cicerone1Name, Methods: []PlainMethod{
		{
			Name: "EnsureContainer", Right: policy.RightDaemon, Timeout: ensureTimeout,
			In: []Arg{{"cid", "u"}, {"container", "s"}, {"user", "s"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				return nil, h.EnsureContainer(ctx, c.subject, c.args[0].(uint32), c.args[1].(string), c.args[2].(string))
			},
		},
		{
			Name: "ExportContainer", Right: policy.RightOwn,
			In: []Arg{{"name", "s"}, {ownerArg, "s"}, {"container", "s"}, {"out", "h"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				return nil, h.ExportContainer(ctx, c.subject, c.args[0].(string), c.args[2].(string), c.args[3].(*os.File))
			},
		},
		{
			Name: "ImportContainer", Right: policy.RightOwn,
			In: []Arg{{"name", "s"}, {ownerArg, "s"}, {"container", "s"}, {"in", "h"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				return nil, h.ImportContainer(ctx, c.subject, c.args[0].(string), c.args[2].(string), c.args[3].(*os.File))
			},
		},
		{
			Name: "ListContainers", Right: policy.RightOwn,
			In:  []Arg{{"name", "s"}, {ownerArg, "s"}},
			Out: []Arg{{"containers", "aa{sv}"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				list, err := h.ListContainers(ctx, c.subject, c.args[0].(string))
				return []any{list}, err
			},
		},
		{
			// The answer is a vm_tools.apps.ApplicationList.
			// Megabytes, at the most, which a guest has made up.
			Name: "ListApplications", Right: policy.RightOwn, Weight: longAnswer,
			In:  []Arg{{"name", "s"}, {ownerArg, "s"}, {"container", "s"}},
			Out: []Arg{{"applications", "ay"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				list, err := h.ListApplications(ctx, c.subject, c.args[0].(string), c.args[2].(string))
				if err != nil {
					return nil, err
				}
				data, err := proto.Marshal(list)
				return []any{data}, err
			},
		},
		getServiceInfo(h),
		// As in Concierge1Interface.
		{Name: "Subscribe", Right: policy.RightSelf, Watch: true, handle: subscribe},
		{Name: "Unsubscribe", Right: policy.RightAny, handle: unsubscribe},
	}}
	if h == nil {
		for i := range own.Methods {
			own.Methods[i].handle = nil
		}
	}
	return own
}
