package guard_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guest/guard"
)

func TestCalls(t *testing.T) {
	var log strings.Builder
	calls := guard.Calls(slog.New(slog.NewTextHandler(&log, nil)), "see the log")
	info := &grpc.UnaryServerInfo{FullMethod: "/vm_tools.Maitred/GetKernelVersion"}
	call := func(h grpc.UnaryHandler) (any, error) { return calls(t.Context(), "asked", info, h) }
	if resp, err := call(func(_ context.Context, req any) (any, error) { return req, nil }); resp != "asked" || err != nil || log.Len() > 0 {
		t.Errorf("%v, %v, and the log says %q", resp, err, &log)
	}
	refused := errors.New("no")
	if _, err := call(func(context.Context, any) (any, error) { return nil, refused }); err != refused || !strings.Contains(log.String(), "GetKernelVersion") {
		t.Errorf("%v, and the log says %q", err, &log)
	}
	log.Reset()
	resp, err := call(func(context.Context, any) (any, error) { panic("a defect") })
	if resp != nil || status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "GetKernelVersion: see the log") || !strings.Contains(log.String(), "a defect") {
		t.Errorf("%v, %v, and the log says %q", resp, err, &log)
	}
}
