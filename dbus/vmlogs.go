package dbus

import (
	"context"
	"fmt"

	"github.com/auberge-vm/auberge/policy"
)

// LogOptions are those of OpenVmLogs.
type LogOptions struct {
	// Follow goes on with lines as they come.
	Follow bool
	// Lines is how many of the last lines to begin with, zero for all.
	Lines uint32
}

func openVmLogs(h Concierge1) PlainMethod {
	return PlainMethod{
		Name: "OpenVmLogs", Right: policy.RightOwn,
		In:  []Arg{{"name", "s"}, {ownerArg, "s"}, {"options", "a{sv}"}},
		Out: []Arg{{"log", "h"}},
		handle: func(ctx context.Context, c *plainCall) ([]any, error) {
			options, err := readLogOptions(c.args[2].(map[string]any))
			if err != nil {
				return nil, newError(errInvalidArgs, "options: %v", err)
			}
			f, err := h.OpenVmLogs(ctx, c.subject, c.args[0].(string), options)
			return []any{f}, err
		},
	}
}

func readLogOptions(d map[string]any) (o LogOptions, err error) {
	for key, value := range d {
		var ok bool
		switch key {
		case "follow":
			o.Follow, ok = value.(bool)
		case "lines":
			o.Lines, ok = value.(uint32)
		default:
			return o, fmt.Errorf("there is no %q; the options are follow (b) and lines (u)", key)
		}
		if !ok {
			return o, fmt.Errorf("%s has the wrong type; follow is b, lines u", key)
		}
	}
	return o, nil
}
