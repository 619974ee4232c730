// The AWS SDK for Go v2 with nothing but the environment: who am I?  See ../README.md for the two modes.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "identity" {
		cfg, err := config.LoadDefaultConfig(ctx)
		if err != nil {
			return err
		}
		who, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			return err
		}
		fmt.Println(*who.Arn)
		return nil
	}
	times, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for range times {
		cfg, err := config.LoadDefaultConfig(ctx)
		if err != nil {
			return err
		}
		credentials, err := cfg.Credentials.Retrieve(ctx)
		if err != nil {
			return err
		}
		fmt.Println(credentials.AccessKeyID)
	}
	return nil
}
