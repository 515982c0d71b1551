// Package guard keeps a defect in one call of the host from ending the agent
// that serves it, and leaves a trace of every call that failed.
package guard

import (
	"context"
	"log/slog"
	"path"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Calls guards the calls of a server. hint tells the host which agent has a
// defect, and where more is to be read.
func Calls(log *slog.Logger, hint string) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		method := path.Base(info.FullMethod)
		defer func() {
			if r := recover(); r != nil {
				log.Error("a call panicked", "method", method, "panic", r, "stack", string(debug.Stack()))
				resp, err = nil, status.Errorf(codes.Internal, "%s: %s", method, hint)
			}
			if err != nil {
				log.Error("a call failed", "method", method, "err", err)
			}
		}()
		return handler(ctx, req)
	}
}
