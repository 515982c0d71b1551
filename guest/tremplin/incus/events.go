package incus

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path"

	"golang.org/x/net/websocket"
)

// maxEvent bounds one event.
const maxEvent = 1 << 20

// A Lifecycle is something that happened to an instance.
type Lifecycle struct {
	Action   string // such as instance-stopped
	Instance string
}

// Lifecycles calls tell for each event of instances, in their order, until the
// context or the server ends. ready is called once when nothing that happens
// from then on will be missed.
func (c *Client) Lifecycles(ctx context.Context, ready func(), tell func(Lifecycle)) error {
	config, err := websocket.NewConfig("ws://incus/1.0/events?type=lifecycle", "http://incus")
	if err != nil {
		return err
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		return fmt.Errorf("Incus gives no events: %w", err)
	}
	ws.MaxPayloadBytes = maxEvent
	ready()
	for {
		var data []byte
		if err := websocket.Message.Receive(ws, &data); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("Incus' events ended: %w", err)
		}
		if l, ok := parseLifecycle(data); ok {
			tell(l)
		}
	}
}

func parseLifecycle(data []byte) (Lifecycle, bool) {
	var e struct {
		Type     string `json:"type"`
		Metadata struct {
			Action string `json:"action"`
			Source string `json:"source"`
			Name   string `json:"name"`
		} `json:"metadata"`
	}
	if json.Unmarshal(data, &e) != nil || e.Type != "lifecycle" || e.Metadata.Action == "" {
		return Lifecycle{}, false
	}
	// Older servers name the instance by its address only.
	dir, name := path.Split(e.Metadata.Source)
	if dir != "/1.0/instances/" {
		return Lifecycle{}, false
	}
	return Lifecycle{Action: e.Metadata.Action, Instance: name}, true
}
