package dbus

import (
	"context"

	"github.com/auberge-vm/auberge/policy"
)

// getQuota tells the caller what it has and may have. The sizes are bytes; a
// limit that is none is not there.
func getQuota(h Concierge1) PlainMethod {
	return PlainMethod{
		Name: "GetQuota", Right: policy.RightSelf,
		Out: []Arg{{"quota", "a{sv}"}},
		handle: func(ctx context.Context, c *plainCall) ([]any, error) {
			d, err := h.GetQuota(ctx, c.subject)
			return []any{d}, err
		},
	}
}

// getAllState shows everybody's VMs at a glance.
func getAllState(h Concierge1) PlainMethod {
	return PlainMethod{
		Name: "GetAllState", Right: policy.RightAdmin,
		Out: []Arg{{"instance", "s"}, {"sequence", "t"}, {"vms", "aa{sv}"}, {"operations", "aa{sv}"}},
		handle: func(ctx context.Context, c *plainCall) ([]any, error) {
			st, err := h.GetAllState(ctx, c.subject)
			return []any{st.Instance, st.Sequence, st.VMs, st.Operations}, err
		},
	}
}

// listDiskUsage shows what everybody has, like GetQuota.
func listDiskUsage(h Concierge1) PlainMethod {
	return PlainMethod{
		Name: "ListDiskUsage", Right: policy.RightAdmin,
		Out: []Arg{{"users", "aa{sv}"}},
		handle: func(ctx context.Context, c *plainCall) ([]any, error) {
			users, err := h.ListDiskUsage(ctx, c.subject)
			return []any{users}, err
		},
	}
}

// getServiceInfo tells facts about the host and the service, and nothing of
// anybody's VMs.
func getServiceInfo(h interface {
	GetServiceInfo(ctx context.Context, s policy.Subject) (map[string]any, error)
}) PlainMethod {
	return PlainMethod{
		Name: "GetServiceInfo", Right: policy.RightAny,
		Out: []Arg{{"info", "a{sv}"}},
		handle: func(ctx context.Context, c *plainCall) ([]any, error) {
			d, err := h.GetServiceInfo(ctx, c.subject)
			return []any{d}, err
		},
	}
}
