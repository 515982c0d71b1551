package dbus

import (
	"errors"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/policy"
)

// failure answers a call with an error: in the response where that can say
// that it failed, as a D-Bus error otherwise. Denials are D-Bus errors always.
func (e *protoEndpoint) failure(err error) (body, error) {
	var direct *callError
	if e.Response == nil || errors.Is(err, policy.ErrDenied) || errors.As(err, &direct) {
		return body{}, err
	}
	resp := failedResponse(e.Response, err)
	if resp == nil {
		return body{}, err
	}
	return e.response(resp)
}

// failedResponse makes a response like prototype that says what went wrong:
// success stays false, a status gets its value for failure, the reason is the
// error's text where there is a field for it. It returns nil when the response
// has neither success nor status.
func failedResponse(prototype proto.Message, err error) proto.Message {
	resp := prototype.ProtoReflect().New()
	fields := resp.Descriptor().Fields()
	told := false
	if fd := fields.ByName("success"); fd != nil && fd.Kind() == protoreflect.BoolKind {
		told = true
	}
	if fd := fields.ByName("status"); fd != nil && fd.Kind() == protoreflect.EnumKind && !fd.IsList() {
		if n, ok := failedStatus(fd.Enum()); ok {
			resp.Set(fd, protoreflect.ValueOfEnum(n))
			told = true
		}
	}
	if !told {
		return nil
	}
	for _, name := range []protoreflect.Name{"failure_reason", "reason"} {
		if fd := fields.ByName(name); fd != nil && fd.Kind() == protoreflect.StringKind && !fd.IsList() {
			resp.Set(fd, protoreflect.ValueOfString(callerText(err.Error())))
			break
		}
	}
	return resp.Interface()
}

// failedStatus finds the enum value that means failure, which upstream calls
// DISK_STATUS_FAILED, VM_STATUS_FAILURE, or plain FAILED.
func failedStatus(enum protoreflect.EnumDescriptor) (protoreflect.EnumNumber, bool) {
	values := enum.Values()
	for i := range values.Len() {
		name := "_" + string(values.Get(i).Name())
		if strings.HasSuffix(name, "_FAILED") || strings.HasSuffix(name, "_FAILURE") {
			return values.Get(i).Number(), true
		}
	}
	return 0, false
}
