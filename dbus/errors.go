package dbus

import (
	"errors"
	"fmt"
	"strings"

	"github.com/auberge-vm/auberge/policy"
)

// Names of standard errors that are sent to callers.
const (
	errAccessDenied     = "org.freedesktop.DBus.Error.AccessDenied"
	errFailed           = "org.freedesktop.DBus.Error.Failed"
	errInvalidArgs      = "org.freedesktop.DBus.Error.InvalidArgs"
	errLimitsExceeded   = "org.freedesktop.DBus.Error.LimitsExceeded"
	errNotSupported     = "org.freedesktop.DBus.Error.NotSupported"
	errPropertyReadOnly = "org.freedesktop.DBus.Error.PropertyReadOnly"
	errUnknownInterface = "org.freedesktop.DBus.Error.UnknownInterface"
	errUnknownMethod    = "org.freedesktop.DBus.Error.UnknownMethod"
	errUnknownObject    = "org.freedesktop.DBus.Error.UnknownObject"
	errUnknownProperty  = "org.freedesktop.DBus.Error.UnknownProperty"
)

// Names of errors on our own interfaces. A handler chooses one by returning an
// error that wraps a [NamedError].
const (
	ErrorPrefix          = "io.github.auberge_vm.Error."
	ErrorNotFound        = ErrorPrefix + "NotFound"
	ErrorNotRunning      = ErrorPrefix + "NotRunning"
	ErrorInvalidArgument = ErrorPrefix + "InvalidArgument"
	ErrorFailed          = ErrorPrefix + "Failed"
)

// A NamedError is an error that knows its name on the bus. Domain packages
// implement it without importing this one. A name that does not begin with
// ErrorPrefix is ignored.
type NamedError interface {
	error
	BusErrorName() string
}

// maxErrorText caps, in bytes, what a caller is told about a failure.
const maxErrorText = 8 << 10

// errInternal is all that a caller learns about a defect of ours; the log has
// the rest.
var errInternal = &callError{name: errFailed, text: "internal error"}

// A callError is a D-Bus error: one that ends a call, or one that the bus
// answered with.
type callError struct{ name, text string }

func (e *callError) Error() string { return e.name + ": " + e.text }

func newError(name, format string, args ...any) *callError {
	return &callError{name: name, text: fmt.Sprintf(format, args...)}
}

// asCallError maps an error that ends a call on the bus. fallback is the name
// for an error that chooses none.
func asCallError(err error, fallback string) *callError {
	var direct *callError
	var named NamedError
	switch {
	case errors.As(err, &direct):
		return direct
	case errors.Is(err, policy.ErrDenied):
		return &callError{errAccessDenied, err.Error()}
	case errors.As(err, &named) && validErrorName(named.BusErrorName()):
		return &callError{named.BusErrorName(), err.Error()}
	case fallback == ErrorFailed && (errors.Is(err, policy.ErrOwner) || errors.Is(err, policy.ErrName)):
		return &callError{ErrorInvalidArgument, err.Error()}
	}
	return &callError{fallback, err.Error()}
}

// validErrorName accepts names of ours: anything else would be a message that
// the bus ends our connection for, or a name that means something to clients.
func validErrorName(name string) bool {
	word, ok := strings.CutPrefix(name, ErrorPrefix)
	return ok && word != "" && len(name) <= 255 && strings.IndexFunc(word, func(c rune) bool {
		return (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
	}) < 0
}

// callerText makes an error's text fit to be sent: UTF-8 without NUL, capped.
// The replacement is one byte long, so that the text cannot grow again.
func callerText(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), maxErrorText)], "?")
	return strings.ReplaceAll(text, "\x00", "?")
}
