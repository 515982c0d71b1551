package vmc

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

// forms are the flags that choose one, and which was chosen.
type forms map[form]*bool

func (fs forms) define(cmd *cobra.Command, f form, usage string) {
	fs[f] = cmd.Flags().Bool(string(f), false, usage)
}

func (fs forms) exclusive(cmd *cobra.Command) {
	var names []string
	for f := range fs {
		names = append(names, string(f))
	}
	cmd.MarkFlagsMutuallyExclusive(names...)
}

func (fs forms) chosen() form {
	for f, set := range fs {
		if *set {
			return f
		}
	}
	return ""
}

func (a *app) encodeCommand() *cobra.Command {
	fs := forms{}
	cmd := &cobra.Command{
		Use:   "encode METHOD [JSON]",
		Short: "Print a request as the words that busctl or dbus-send take",
		Long: "Print the request of METHOD that JSON says (\"-\" reads it from standard input,\n" +
			"nothing is the empty request) as the words for a tool that calls D-Bus methods:\n" +
			"for busctl unless a flag says otherwise. METHOD may also be the name of a message.\n" +
			"No bus is needed.",
		Example: `  busctl call org.chromium.VmConcierge /org/chromium/VmConcierge org.chromium.VmConcierge \
      GetVmInfo $(vmc encode GetVmInfo '{"name": "termina"}') | vmc decode GetVmInfo
  dbus-send --system --print-reply --dest=org.chromium.VmConcierge /org/chromium/VmConcierge \
      org.chromium.VmConcierge.ListVms $(vmc encode --dbus-send ListVms) | vmc decode ListVms`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeFirst(methodNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := find(args[0])
			if err != nil {
				return err
			}
			req, err := a.requestArgument(s, args[1:])
			if err != nil || req == nil {
				return err // without a request there are no words
			}
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
			if err != nil {
				return err
			}
			f := fs.chosen()
			text := f.write(b)
			if f != formRaw {
				text += "\n"
			}
			_, err = io.WriteString(a.out, text)
			return err
		},
	}
	fs.define(cmd, formBusctl, "words for busctl: ay LENGTH BYTE... (the default)")
	fs.define(cmd, formDBusSend, "a word for dbus-send: array:byte:0x0a,...")
	fs.define(cmd, formGDBus, "a word for gdbus: [byte 0x0a,...]")
	fs.define(cmd, formHex, "hexadecimal")
	fs.define(cmd, formBase64, "base64")
	fs.define(cmd, formRaw, "the bytes themselves")
	fs.exclusive(cmd)
	return cmd
}

func (a *app) decodeCommand() *cobra.Command {
	fs := forms{}
	var request bool
	cmd := &cobra.Command{
		Use:   "decode METHOD|SIGNAL|MESSAGE [WORD...]",
		Short: "Print a reply that busctl, dbus-send or gdbus printed as JSON",
		Long: "Read a reply of METHOD, a SIGNAL's payload or any MESSAGE of the contract as busctl\n" +
			"(also with --json or --verbose), dbus-send --print-reply, gdbus or the monitors of\n" +
			"these print it, or in hex, base64 or as raw bytes, from the arguments or from\n" +
			"standard input, and print it as JSON. Text that is both is taken for hex rather\n" +
			"than for base64. No bus is needed.",
		Example: `  busctl call org.chromium.VmConcierge /org/chromium/VmConcierge org.chromium.VmConcierge \
      ListVms $(vmc encode ListVms) | vmc decode ListVms
  vmc decode StopVm ay 2 8 1`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeFirst(methodNames, signalNames, messageNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := find(args[0])
			if err != nil {
				return err
			}
			text := strings.Join(args[1:], " ")
			if len(args) == 1 {
				if text, err = a.readInput(); err != nil {
					return err
				}
			}
			b, err := readBytes(text, fs.chosen())
			if err != nil {
				return withCode(ExitFailed, err)
			}
			var m proto.Message
			if request {
				if m = s.request(); m == nil {
					return withCode(ExitUsage, fmt.Errorf("%s takes no request", s.name))
				}
				m, err = unmarshal(b, m)
			} else {
				m, err = s.response(b)
			}
			if err != nil {
				return err
			}
			return a.printJSON(m)
		},
	}
	cmd.Flags().BoolVar(&request, "request", false, "it is a request of METHOD, not its reply")
	fs.define(cmd, formHex, "the input is hexadecimal")
	fs.define(cmd, formBase64, "the input is base64")
	fs.define(cmd, formRaw, "the input is the bytes themselves")
	fs.exclusive(cmd)
	return cmd
}

func (a *app) readInput() (string, error) {
	if a.in == nil {
		return "", withCode(ExitUsage, errors.New("there is no standard input to read"))
	}
	b, err := io.ReadAll(io.LimitReader(a.in, maxInput+1))
	if err != nil {
		return "", withCode(ExitFailed, fmt.Errorf("read standard input: %w", err))
	}
	if len(b) > maxInput {
		return "", withCode(ExitFailed, fmt.Errorf("standard input has more than %d MiB", maxInput>>20))
	}
	return string(b), nil
}
