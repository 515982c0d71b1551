package incus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"
)

// What an instance's status may be, besides what few see of one that runs.
const (
	Running = "Running"
	Stopped = "Stopped"
	// Unknown is what Incus says when its container's monitor does not answer.
	Unknown = "Error"
)

// Devices are an instance's or a profile's.
type Devices map[string]map[string]string

// An Instance is a container.
type Instance struct {
	Name           string            `json:"name"`
	Status         string            `json:"status"`
	Architecture   string            `json:"architecture"`
	Config         map[string]string `json:"config"`
	Devices        Devices           `json:"devices"`
	ExpandedConfig map[string]string `json:"expanded_config"`
}

// Instances lists all.
func (c *Client) Instances(ctx context.Context) ([]Instance, error) {
	var all []Instance
	_, err := c.call(ctx, http.MethodGet, "/1.0/instances?recursion=1", nil, &all)
	return all, err
}

// Instance returns one.
func (c *Client) Instance(ctx context.Context, name string) (Instance, error) {
	var i Instance
	_, err := c.call(ctx, http.MethodGet, instancePath(name), nil, &i)
	return i, err
}

func instancePath(name string) string { return "/1.0/instances/" + escape(name) }

// CreateInstance begins to make a container of an image.
func (c *Client) CreateInstance(ctx context.Context, name, fingerprint string, config map[string]string) (Operation, error) {
	return c.begin(ctx, http.MethodPost, "/1.0/instances", map[string]any{
		"name":   name,
		"type":   "container",
		"config": config,
		"source": map[string]string{"type": "image", "fingerprint": fingerprint},
	})
}

// Change sets keys and devices of an instance. An empty value removes a key,
// a nil device removes a device, and what is not named stays.
func (c *Client) Change(ctx context.Context, name string, config map[string]string, devices Devices) error {
	// PATCH cannot remove a device, so all of it is put.
	var whole json.RawMessage
	if _, err := c.call(ctx, http.MethodGet, instancePath(name), nil, &whole); err != nil {
		return err
	}
	var i Instance
	var kept map[string]any
	if err := errors.Join(json.Unmarshal(whole, &i), json.Unmarshal(whole, &kept)); err != nil {
		return fmt.Errorf("Incus' answer about %s is not understood: %w", name, err)
	}
	if i.Config == nil {
		i.Config = map[string]string{}
	}
	for k, v := range config {
		if i.Config[k] = v; v == "" {
			delete(i.Config, k)
		}
	}
	if i.Devices == nil {
		i.Devices = Devices{}
	}
	for k, v := range devices {
		if i.Devices[k] = v; v == nil {
			delete(i.Devices, k)
		}
	}
	body := map[string]any{"config": i.Config, "devices": i.Devices}
	for _, key := range []string{"architecture", "description", "ephemeral", "profiles", "stateful"} {
		body[key] = kept[key]
	}
	_, err := c.do(ctx, http.MethodPut, instancePath(name), body)
	return err
}

// Rename gives a stopped instance another name.
func (c *Client) Rename(ctx context.Context, name, to string) error {
	_, err := c.do(ctx, http.MethodPost, instancePath(name), map[string]string{"name": to})
	return err
}

// Delete removes a stopped instance.
func (c *Client) Delete(ctx context.Context, name string) error {
	_, err := c.do(ctx, http.MethodDelete, instancePath(name), nil)
	return err
}

// Start starts an instance.
func (c *Client) Start(ctx context.Context, name string) error {
	return c.setState(ctx, name, map[string]any{"action": "start", "timeout": -1})
}

// Stop kills what runs in an instance.
func (c *Client) Stop(ctx context.Context, name string) error {
	return c.setState(ctx, name, map[string]any{"action": "stop", "force": true, "timeout": -1})
}

func (c *Client) setState(ctx context.Context, name string, body any) error {
	_, err := c.do(ctx, http.MethodPut, instancePath(name)+"/state", body)
	return err
}

// State is what runs in an instance now.
type State struct {
	Status  string `json:"status"`
	PID     int    `json:"pid"`
	Network map[string]struct {
		Addresses []struct {
			Family  string `json:"family"`
			Address string `json:"address"`
			Scope   string `json:"scope"`
		} `json:"addresses"`
	} `json:"network"`
}

// State returns the state of an instance.
func (c *Client) State(ctx context.Context, name string) (State, error) {
	var s State
	_, err := c.call(ctx, http.MethodGet, instancePath(name)+"/state", nil, &s)
	return s, err
}

// IPv4 returns the address by which a container is reached.
func (s State) IPv4() (netip.Addr, bool) {
	for _, a := range s.Network["eth0"].Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if err == nil && ip.Is4() && a.Scope == "global" {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// A Snapshot is a state of an instance's files.
type Snapshot struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created_at"`
}

// Snapshots lists the snapshots of an instance.
func (c *Client) Snapshots(ctx context.Context, name string) ([]Snapshot, error) {
	var all []Snapshot
	_, err := c.call(ctx, http.MethodGet, instancePath(name)+"/snapshots?recursion=1", nil, &all)
	return all, err
}

// CreateSnapshot keeps the files of an instance as they are now.
func (c *Client) CreateSnapshot(ctx context.Context, name, snapshot string) error {
	_, err := c.do(ctx, http.MethodPost, instancePath(name)+"/snapshots", map[string]any{"name": snapshot, "stateful": false})
	return err
}

// DeleteSnapshot removes a snapshot.
func (c *Client) DeleteSnapshot(ctx context.Context, name, snapshot string) error {
	_, err := c.do(ctx, http.MethodDelete, instancePath(name)+"/snapshots/"+escape(snapshot), nil)
	return err
}
