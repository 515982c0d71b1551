package vmc

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func (a *app) callCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "call METHOD [JSON]",
		Short: "Call a method of vm_concierge or vm_cicerone with a request in JSON",
		Long: "Send METHOD the request that JSON says (\"-\" reads it from standard input, nothing is\n" +
			"the empty request) and print the response as JSON, {} where there is none. Methods:\n  " +
			wrapped(methodNames(), 76, "  ") + ".",
		Example:           `  vmc call GetVmInfo '{"name": "termina"}'`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeFirst(methodNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rawCall(cmd.Context(), args[0], args[1:])
		},
	}
}

// wrapped joins words by commas in lines of a width.
func wrapped(words []string, width int, indent string) string {
	var b strings.Builder
	column := 0
	for i, w := range words {
		switch {
		case i == 0:
		case column+len(w)+3 > width:
			b.WriteString(",\n" + indent)
			column = 0
		default:
			b.WriteString(", ")
			column += 2
		}
		b.WriteString(w)
		column += len(w)
	}
	return b.String()
}

func (a *app) rawCall(ctx context.Context, name string, args []string) error {
	of, m, err := findMethod(name)
	if err != nil {
		return err
	}
	req, err := a.requestArgument(&subject{name: name, method: m}, args)
	if err != nil {
		return err
	}
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	var resp proto.Message
	switch {
	case m.Response == nil:
	case req == nil:
		resp = fresh(m.Response)
	default:
		resp = fresh(m.ResponseFor(req))
	}
	if err := s.with(of).call(ctx, name, req, resp); err != nil {
		return err
	}
	if resp == nil {
		return a.printValue(struct{}{})
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
