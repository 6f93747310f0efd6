/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster/fabric_inside.h"

lode_status_t lode_fabric_prepare(const lode_fabric_params_t *params, lode_fabric_h *fabric, void **card,
                                  size_t *card_bytes)
{
    (void)params, (void)fabric, (void)card, (void)card_bytes;
    return lode_fail(LODE_ERR_UNSUPPORTED, "this version cannot join a running cluster");
}

lode_status_t lode_fabric_admit(lode_fabric_h fabric, const void *card, size_t card_bytes, void **invitation,
                                size_t *invitation_bytes)
{
    (void)fabric, (void)card, (void)card_bytes, (void)invitation, (void)invitation_bytes;
    return lode_fail(LODE_ERR_UNSUPPORTED, "this version cannot admit another process");
}

lode_status_t lode_fabric_enter(lode_fabric_h fabric, const void *invitation, size_t invitation_bytes)
{
    (void)fabric, (void)invitation, (void)invitation_bytes;
    return lode_fail(LODE_ERR_UNSUPPORTED, "this version cannot join a running cluster");
}
