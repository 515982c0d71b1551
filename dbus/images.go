package dbus

import (
	"context"
	"time"

	"github.com/auberge-vm/auberge/policy"
)

// imageTimeout is how long copying an image may take.
const imageTimeout = 10 * time.Minute

// An ImageHandler handles the methods about installed guest images.
type ImageHandler interface {
	// ListImages returns the images that there are, each with those VMs that
	// run it and that the caller may see.
	ListImages(ctx context.Context, s policy.Subject) ([]map[string]any, error)
	// UpdateImage takes the packaged image into use for VMs that start from
	// now on. It and RollbackImage return the image that is in use then.
	UpdateImage(ctx context.Context, s policy.Subject) (map[string]any, error)
	// RollbackImage goes back to the image that was in use before.
	RollbackImage(ctx context.Context, s policy.Subject) (map[string]any, error)
}

func imageMethods(h ImageHandler) []PlainMethod {
	return []PlainMethod{
		{
			Name: "ListImages", Right: policy.RightSelf,
			Out: []Arg{{"images", "aa{sv}"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				list, err := h.ListImages(ctx, c.subject)
				return []any{list}, err
			},
		},
		{
			Name: "UpdateImage", Right: policy.RightAdmin, Timeout: imageTimeout,
			Out: []Arg{{"image", "a{sv}"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				image, err := h.UpdateImage(ctx, c.subject)
				return []any{image}, err
			},
		},
		{
			Name: "RollbackImage", Right: policy.RightAdmin,
			Out: []Arg{{"image", "a{sv}"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				image, err := h.RollbackImage(ctx, c.subject)
				return []any{image}, err
			},
		},
	}
}
