package incus

import (
	"context"
	"net/http"
)

// EnsurePool makes a storage pool unless it is there.
func (c *Client) EnsurePool(ctx context.Context, name, driver string, config map[string]string) error {
	return c.ensure(ctx, "/1.0/storage-pools", name, map[string]any{"name": name, "driver": driver, "config": config}, nil)
}

// EnsureBridge makes a bridge, or gives the one that is there this
// configuration.
func (c *Client) EnsureBridge(ctx context.Context, name string, config map[string]string) error {
	return c.ensure(ctx, "/1.0/networks", name,
		map[string]any{"name": name, "type": "bridge", "config": config}, map[string]any{"config": config})
}

// EnsureProfile makes a profile, or gives the one that is there this content.
func (c *Client) EnsureProfile(ctx context.Context, name, description string, config map[string]string, devices Devices) error {
	change := map[string]any{"description": description, "config": config, "devices": devices}
	create := map[string]any{"name": name, "description": description, "config": config, "devices": devices}
	return c.ensure(ctx, "/1.0/profiles", name, create, change)
}

// ensure makes a thing of a collection, or changes the one of that name.
func (c *Client) ensure(ctx context.Context, collection, name string, create, change any) error {
	there, err := c.exists(ctx, collection+"/"+escape(name))
	switch {
	case err != nil:
		return err
	case !there:
		_, err = c.call(ctx, http.MethodPost, collection, create, nil)
	case change != nil:
		_, err = c.call(ctx, http.MethodPut, collection+"/"+escape(name), change, nil)
	}
	return err
}

// Recover makes the database know the instances of a pool that is on the disk
// already, and returns how many there are.
func (c *Client) Recover(ctx context.Context, pool, driver string, config map[string]string) (int, error) {
	pools := []map[string]any{{"name": pool, "driver": driver, "config": config, "description": ""}}
	var found struct {
		Unknown []struct {
			Name string `json:"name"`
			Type string `json:"type"`
		} `json:"UnknownVolumes"`
		Missing []string `json:"DependencyErrors"`
	}
	if _, err := c.call(ctx, http.MethodPost, "/internal/recover/validate", map[string]any{"pools": pools}, &found); err != nil {
		return 0, err
	}
	if len(found.Missing) > 0 {
		return 0, &Error{Code: http.StatusPreconditionFailed, Text: "the containers need what is missing: " + found.Missing[0]}
	}
	_, err := c.call(ctx, http.MethodPost, "/internal/recover/import", map[string]any{"pools": pools}, nil)
	return len(found.Unknown), err
}
