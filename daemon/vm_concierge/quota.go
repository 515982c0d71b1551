package main

import (
	"cmp"
	"fmt"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/concierge"
)

// What a user may have unless configured otherwise. The number of VMs keeps
// one user from taking all addresses and processes; how much of memory and
// disk is fair only the administrator knows.
const (
	defaultMaxVMs  = 16
	defaultMaxLogs = 512 << 20
)

func (o *options) addQuotaFlags(f *pflag.FlagSet) {
	o.maxVMs, o.maxMemory, o.maxDisk, o.maxLogs = defaultMaxVMs, concierge.Unlimited, concierge.Unlimited, defaultMaxLogs
	f.Var(&o.maxVMs, "max-vms", "how many VMs of a user may run at a time, or unlimited")
	f.Var(&o.maxMemory, "max-memory", "how much memory the running VMs of a user may have in all, such as 8G, or unlimited")
	f.Var(&o.maxDisk, "max-disk", "how large the disk images of a user may be in all, as guests see them, or unlimited")
	f.Var(&o.maxLogs, "max-logs", "how large the logs of a user's VMs that do not run may be in all, or unlimited")
	f.StringArrayVar(&o.quotas, "quota", nil, "other limits for a user, a uid or a @group: `USER:vms=4,memory=8G,disk=100G,logs=1G`; may be repeated")
}

func (o *options) quota() (*concierge.Quota, error) {
	q := &concierge.Quota{
		Default: concierge.Limits{VMs: uint64(o.maxVMs), Memory: uint64(o.maxMemory), Disk: uint64(o.maxDisk), Logs: uint64(o.maxLogs)},
		Where:   cmp.Or(o.Config, "the options of vm_concierge"),
	}
	for _, text := range o.quotas {
		if text == "" {
			continue // the file's way to say that there is none
		}
		r, err := concierge.ParseQuotaRule(text)
		if err != nil {
			return nil, fmt.Errorf("--quota: %w", err)
		}
		q.Rules = append(q.Rules, r)
	}
	return q, nil
}

// A limitFlag is a number or no limit.
type limitFlag uint64

func (f *limitFlag) Set(text string) error {
	n, err := concierge.ParseLimit(text)
	*f = limitFlag(n)
	return err
}

func (f *limitFlag) Type() string { return "number" }

func (f *limitFlag) String() string {
	if *f == concierge.Unlimited {
		return "unlimited"
	}
	return strconv.FormatUint(uint64(*f), 10)
}

// A bytesFlag is a number of bytes or no limit.
type bytesFlag uint64

func (f *bytesFlag) Set(text string) error {
	n, err := concierge.ParseLimitBytes(text)
	*f = bytesFlag(n)
	return err
}

func (f *bytesFlag) Type() string { return "size" }

// String has the largest unit that divides the number.
func (f *bytesFlag) String() string {
	n := uint64(*f)
	if n == concierge.Unlimited {
		return "unlimited"
	}
	unit := ""
	for _, u := range []string{"K", "M", "G", "T"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return strconv.FormatUint(n, 10) + unit
}
