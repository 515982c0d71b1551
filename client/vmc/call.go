package vmc

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
)

func (a *app) callCommand() *cobra.Command {
	var names []string
	for _, m := range dbus.ConciergeService(nil).Methods {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return &cobra.Command{
		Use:   "call METHOD [JSON]",
		Short: "Call a method of vm_concierge with a request in JSON",
		Long: "Send METHOD the request that JSON says (\"-\" reads it from standard input, nothing is\n" +
			"the empty request) and print the response as JSON. Methods:\n  " + strings.Join(names, ", ") + ".",
		Example:   `  vmc call GetVmInfo '{"name": "termina"}'`,
		Args:      cobra.RangeArgs(1, 2),
		ValidArgs: names,
		RunE: func(cmd *cobra.Command, args []string) error {
			text := "{}"
			if len(args) == 2 {
				text = args[1]
			}
			if text == "-" {
				b, err := io.ReadAll(a.in)
				if err != nil {
					return err
				}
				text = string(b)
			}
			return a.rawCall(cmd.Context(), args[0], text)
		},
	}
}

func (a *app) rawCall(ctx context.Context, name, text string) error {
	table := dbus.ConciergeService(nil)
	m, ok := table.Method(name)
	if !ok {
		return withCode(ExitUsage, fmt.Errorf("%s has no method %q; see \"vmc call --help\"", table.Interface, name))
	}
	req := m.Request.ProtoReflect().New().Interface()
	if err := parseJSON(text, req); err != nil {
		return withCode(ExitUsage, fmt.Errorf("the request is no %s: %w", req.ProtoReflect().Descriptor().FullName(), err))
	}
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	resp := m.ResponseFor(req).ProtoReflect().New().Interface()
	if err := s.call(ctx, name, req, resp); err != nil {
		return err
	}
	return a.printJSON(resp)
}

// parseJSON reads a request. Field 2 of the disk image requests was disk_path
// before it was vm_name, and JSON takes both.
func parseJSON(text string, req proto.Message) error {
	fields := req.ProtoReflect().Descriptor().Fields()
	if fields.ByName("vm_name") != nil && fields.ByName("disk_path") == nil {
		var object map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &object); err != nil {
			return err
		}
		if v, ok := renamed(object, "disk_path", "diskPath"); ok {
			if _, both := object["vm_name"]; both {
				return fmt.Errorf("disk_path and vm_name are the same field")
			}
			object["vm_name"] = v
			b, err := json.Marshal(object)
			if err != nil {
				return err
			}
			text = string(b)
		}
	}
	return protojson.Unmarshal([]byte(text), req)
}

// renamed takes the value of the first name that is there out of the object.
func renamed(object map[string]json.RawMessage, names ...string) (json.RawMessage, bool) {
	for _, n := range names {
		if v, ok := object[n]; ok {
			delete(object, n)
			return v, true
		}
	}
	return nil, false
}
